"""How good the samples are: Frechet distance, classes covered, label shares; by a classifier or Inception.

evaluator = Evaluator(settings)
for metric in evaluator.evaluate(lambda count: generator(latents(count))):
    print(metric.name, metric.value)
"""

from degan.metrics.evaluate import METRICS, Definition, Evaluator, Evidence, Features, Metric

__all__ = ["METRICS", "Definition", "Evaluator", "Evidence", "Features", "Metric"]
