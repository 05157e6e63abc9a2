"""What each setting means: one explanation for each path, and the names that settings had before.

A path names the block, the kind where the block has several, and the key: `bus.lease_s`,
`mode.partial_exchange.slack`, `data.split.dirichlet.alpha`. `docs.generate` puts the explanations beside types,
ranges and defaults, which it takes from the structs themselves. `tests/docs/test_settings.py` fails for a setting
with no explanation and for an explanation with no setting.
"""

from __future__ import annotations

_LEADERS = (
    "Workers that may lead, in this order: the first n workers, or a list of numbers. Without a value: the first three "
    "workers, or all where there are fewer."
)
_QUORUM = "A round with fewer answers than this share of the workers that were asked is void: it changes nothing."
_FLOOR = "The deadline is never shorter."
_CEILING = "The deadline is never longer."
_REDUCE_LED = (
    "How the answers become one: `mean`, or a robust rule. See [Byzantine workers](reliability.md#byzantine-workers)."
)
_BYZANTINE = "`trimmed_mean` leaves out so many of the largest and of the smallest values of each coordinate."
_UPDATES = (
    "`simultaneous`: both gradients are taken at the same parameters. `alternating`: the discriminator's step comes "
    "first, and the generator's gradient is taken against the updated discriminator."
)
_LATENT = "Number of values in a latent vector."
_SIZE = "Height and width of an image in pixels. Images of another size are scaled."

EXPLANATIONS: dict[str, str] = {
    "name": "Name of the experiment. It is part of every Redis key and of the default run folder.",
    "seed": "Everything random is derived from this number, the worker's number and the purpose.",
    "peers": (
        "Redis URLs in worker order, one for each worker. `redis://host:6379` is plain, `rediss://` uses TLS, "
        "`unix://` is a socket. A number instead of a list is for the local launcher."
    ),
    "connect_timeout_s": "How long a worker waits for an absent Redis or an absent peer at the start.",
    "device": "Where the networks are trained: `auto`, `cpu`, `cuda` or `cuda:1`.",
    "loss": "What discriminator and generator minimise.",
    # data
    "data.name": "The data set. `folder` reads class folders of images; `gaussian-ring` makes points in the plane.",
    "data.root": "Folder that holds the data on this host.",
    "data.download": "Fetch the data set once, before the workers start, if it is missing.",
    "data.batch_size": "Samples in a batch of each worker.",
    "data.split.classes.groups": "Lists of classes. Worker w holds the list at position w mod the number of lists.",
    "data.split.dirichlet.alpha": "Concentration. A small value gives very uneven shards.",
    "data.split.dirichlet.min_samples": "The split is drawn again until each worker has so many samples.",
    "data.split.shards.per_worker": "Contiguous cuts that each worker draws.",
    "data.split.fegan.magic_num": (
        "The most samples that a worker takes of one class. Without a value: half of the mean class. Shards are "
        "disjoint; samples that no worker takes are left out."
    ),
    "data.split.fegan.ramp": "Worker r of n holds int(ramp r / n) + 1 random classes. Worker 0 holds all classes.",
    "data.split.fegan.min_samples": "The split is drawn again until each worker has so many samples.",
    "data.split.mixed.even": "Fraction of the samples that is dealt out at random. The rest is cut in label order.",
    # models
    "model.lsgan.latent": _LATENT,
    "model.lsgan.image_size": _SIZE,
    "model.lsgan.norm_eps": "Epsilon of the BatchNorm layers; the released FeGAN code has this large one.",
    "model.dcgan.latent": _LATENT,
    "model.dcgan.width": "Feature maps at the largest resolution. Deeper layers have multiples of it.",
    "model.dcgan.image_size": _SIZE,
    "model.mlp.latent": _LATENT,
    "model.mlp.hidden": "Values in each hidden layer.",
    "model.mlp.image_size": _SIZE,
    "model.degan.latent": _LATENT,
    "model.degan.image_size": _SIZE,
    "classifier.gn_lenet.image_size": _SIZE,
    "classifier.resnet.depth": "Layers, in three stages of equal length.",
    "classifier.resnet.width": "Feature maps of the first stage. The later stages have two and four times as many.",
    "classifier.resnet.norm": "GroupNorm, or BatchNorm, whose running statistics are averaged at sync points.",
    "classifier.resnet.image_size": _SIZE,
    "classifier.mlp.hidden": "Values in the hidden layer.",
    "classifier.mlp.image_size": _SIZE,
    "regularisation.r1_gamma": "Weight of the R1 penalty at the real samples. 0 switches it off.",
    "regularisation.gradient_penalty": "Weight of the gradient penalty. Only `wasserstein_gp` uses it.",
    "optimiser.algorithm": "The optimiser of every network.",
    "optimiser.lr": "Learning rate of a classifier.",
    "optimiser.generator_lr": "Learning rate of the generator.",
    "optimiser.discriminator_lr": "Learning rate of the discriminator.",
    "optimiser.betas": "Adam's decay rates of the first and the second moment.",
    "optimiser.ema_decay": "Decay of the generator's moving average. Evaluations and pictures use that average.",
    # modes
    "mode.local.updates": _UPDATES,
    "mode.partial_exchange.parts": (
        "Number of slices of the vector; one slice leaves in each step. `auto` finds the number while training."
    ),
    "mode.partial_exchange.slack": (
        "Staleness bound in steps: step t waits until every live peer's clock is at least t - slack. 0 is synchronous. "
        "`null` is no bound."
    ),
    "mode.partial_exchange.codec": "How values become bytes. See [codecs](modes/partial_exchange.md#codecs).",
    "mode.partial_exchange.topk_fraction": "Share of the values that `topk` sends.",
    "mode.partial_exchange.rounding": "How `int8` rounds.",
    "mode.partial_exchange.exchange": (
        "What travels. `parameters`: slices of the weights, which become an average. `gradients`: slices of the "
        "gathered gradients, which each worker applies."
    ),
    "mode.partial_exchange.own": (
        "How a worker's own gradient enters. `immediate`: in its own step and in full. `delayed`: as the peers read it "
        "and when they apply it, so the replicas stay equal bit by bit. `delayed` needs a slack."
    ),
    "mode.partial_exchange.reduce": (
        "How the workers' contributions become one. `sum` is for gradients only. The other rules but `mean` are "
        "robust; see [Byzantine workers](reliability.md#byzantine-workers)."
    ),
    "mode.partial_exchange.byzantine": _BYZANTINE,
    "mode.partial_exchange.updates": _UPDATES + " `alternating` needs `exchange: parameters`.",
    "mode.federated.leaders": _LEADERS,
    "mode.federated.leader_trains": "Whether the leader also trains on its own shard.",
    "mode.federated.fraction": "Share of the live workers that a round asks.",
    "mode.federated.cohort": "Number of workers that a round asks, instead of `fraction`.",
    "mode.federated.sampling": "How the cohort is drawn. `balanced` asks holders of rarely seen classes first.",
    "mode.federated.share_histograms": (
        "Whether workers tell their class counts. `sampling: balanced` and `weighting: kl` need them."
    ),
    "mode.federated.local_steps": "Steps of a member in a round.",
    "mode.federated.order": "`discriminator_first` takes the generator's gradient against the updated discriminator.",
    "mode.federated.weighting": (
        "How much an answer counts: all the same, by the size of its shard, or by the Kullback-Leibler divergence of "
        "its classes from those of all."
    ),
    "mode.federated.scheme": "How `weighting: kl` turns a divergence into a weight.",
    "mode.federated.sign": (
        "`divergent_less` gives divergent workers less weight. `as_released` gives them more, as the published FeGAN "
        "code does."
    ),
    "mode.federated.optimiser_state": (
        "`keep`: the moments stay with their worker. `reset`: they begin anew in each round. `average`: they travel "
        "with the model; Adam's then need `codec: raw` or `bfloat16`, because float16 makes zeros of them."
    ),
    "mode.federated.quorum": _QUORUM,
    "mode.federated.deadline.floor_s": _FLOOR,
    "mode.federated.deadline.ceiling_s": _CEILING,
    "mode.federated.codec": "How the model becomes bytes, in both directions.",
    "mode.federated.reduce": _REDUCE_LED,
    "mode.federated.byzantine": _BYZANTINE,
    "mode.federated.stragglers.fraction": "Share of the workers that are weak, drawn by the seed.",
    "mode.federated.stragglers.local_steps": "Steps of a weak worker in a round.",
    "mode.multi_discriminator.leaders": _LEADERS,
    "mode.multi_discriminator.leader_trains": "Whether the leader also has a discriminator and a shard.",
    "mode.multi_discriminator.batches": (
        "Generated batches of a round. `log` is floor(ln N) for N workers, and at least 1."
    ),
    "mode.multi_discriminator.discriminator_steps": "Steps of each discriminator in a round.",
    "mode.multi_discriminator.swap_every": (
        "Epochs between two swaps of the discriminators. 0 means never. Without a value: 1, or 0 for one worker."
    ),
    "mode.multi_discriminator.swap_optimiser": "Whether Adam's moments travel with a discriminator.",
    "mode.multi_discriminator.state_every": "Rounds between two states from which the next leader could go on.",
    "mode.multi_discriminator.quorum": _QUORUM,
    "mode.multi_discriminator.deadline.floor_s": _FLOOR,
    "mode.multi_discriminator.deadline.ceiling_s": _CEILING,
    "mode.multi_discriminator.codec": "How generated samples become bytes.",
    "mode.multi_discriminator.feedback_codec": "How the feedback becomes bytes.",
    "mode.multi_discriminator.reduce": _REDUCE_LED,
    "mode.multi_discriminator.byzantine": _BYZANTINE,
    # the bus
    "bus.lease_s": "A lease lasts for this time. A worker with an expired lease is dropped from the bound.",
    "bus.replay_bytes": (
        "Bytes of a worker's own rounds that its Redis keeps at most, so that a restarted peer can replay them from "
        "its checkpoint. Without a value: 512 MiB where slack is 0, else 64 MiB."
    ),
    "bus.unbounded_backlog": "Rounds that are kept where slack is `null`.",
    "bus.finish_timeout_s": "How long a worker waits for the others at the end.",
    "bus.stall_timeout_s": "How long a worker waits for a peer that lives but makes no progress.",
    "bus.min_peers": (
        "A worker with fewer live peers is on the smaller side of a partition: it pauses until they are back, then "
        "takes their state. In the modes with a leader it does not lead."
    ),
    "bus.norm_gate": (
        "A contribution with more than so many times the usual norm of its part is left out. 0 switches the gate off."
    ),
    "bus.offences": (
        "A sender with so many contributions left out is banned for the rest of its incarnation. 0 means never."
    ),
    "security.folder": (
        "Folder with this worker's certificates, password and run key. `{worker}` in it stands for its number."
    ),
    # the run
    "run.steps": "Steps of the run. In the modes with a leader a step is a round.",
    "run.log_every": "Steps between two lines of `stats.jsonl`.",
    "run.evaluate_every": "Steps between two evaluations.",
    "run.evaluate_samples": "Generated samples that an evaluation measures.",
    "run.snapshot_every": "Steps between two pictures.",
    "run.checkpoint_every": "Steps between two checkpoints. Without a value: as often as pictures.",
    "run.keep_checkpoints": "Newest checkpoints that stay on disk.",
    "run.keep_best": "Keep the checkpoint with the lowest Frechet distance besides.",
}

# Old path -> path of today; None where the setting is gone.
RENAMED: dict[str, str | None] = {
    "mode.partial_exchange.carry": "mode.partial_exchange.exchange",
    "mode.partial_exchange.hostile": "mode.partial_exchange.byzantine",
    "mode.federated.hostile": "mode.federated.byzantine",
    "mode.multi_discriminator.hostile": "mode.multi_discriminator.byzantine",
    "bus.strikes": "bus.offences",
    "mode.partial_exchange.remote": None,
    "bus.minority": None,
}

# Path -> old value -> value of today.
RENAMED_VALUES: dict[str, dict[str, str]] = {
    "mode.partial_exchange.own": {"fresh": "immediate", "published": "delayed"},
}
