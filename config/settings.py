"""Every setting of an experiment, as frozen structs with their ranges and defaults.

A block with a `name` (or a split's `kind`) is a tagged union: the tag picks the struct, and the
struct says which other keys are allowed. To add a model, a data set or a mode, add its struct here
first; `degan/` then looks it up by the same tag.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

# Upper bounds keep infinity, and whatever MessagePack, Redis or an allocation cannot hold, out of the run.
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Width = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e7)]
# A folder's name as well, so not "..". In a pattern \Z, because $ lets a line end pass.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all blocks: frozen, and an unknown key is an error."""


# --- data ---------------------------------------------------------------------------------------


class Iid(Settings, tag_field="kind", tag="iid"):
    """Each worker a random n-th of the data."""


class Classes(Settings, tag_field="kind", tag="classes"):
    """Worker w holds the classes of `groups[w mod len(groups)]`; workers of one group share it out."""

    groups: list[list[Natural]]


class Dirichlet(Settings, tag_field="kind", tag="dirichlet"):
    """Per class, the workers' proportions are drawn from Dir(alpha); small alpha is very uneven."""

    alpha: Rate = 0.5
    min_samples: Positive = 10


class Shards(Settings, tag_field="kind", tag="shards"):
    """Sorted by label and cut into `per_worker` x n contiguous cuts; each worker draws `per_worker`."""

    per_worker: Positive = 2


class Fegan(Settings, tag_field="kind", tag="fegan"):
    """FeGAN's: worker 0 holds all classes, worker r of n only int(ramp r / n) + 1, in unlike numbers.

    Without a value `magic_num`, the most that a worker wants of a class, is half of the mean class.
    """

    magic_num: Annotated[int, msgspec.Meta(ge=1, le=10**9)] | None = None
    ramp: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 200
    min_samples: Positive = 10


class Mixed(Settings, tag_field="kind", tag="mixed"):
    """The fraction `even` is dealt out evenly at random, the rest in contiguous cuts in label order."""

    even: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


class Own(Settings, tag_field="kind", tag="own"):
    """Nothing is cut: all that a worker finds at its `root` is its shard. For hosts that each hold their own data."""


class Data(Settings):
    """What the workers train on. Everything but `root` and `download` must agree between workers."""

    name: Literal["digits", "mnist", "fashion-mnist", "cifar10", "folder", "gaussian-ring"]
    root: str | None = None
    download: bool = False
    split: Iid | Classes | Dirichlet | Shards | Fegan | Mixed | Own = Iid()
    batch_size: Positive = 32


# --- models -------------------------------------------------------------------------------------


class Lsgan(Settings, tag_field="name", tag="lsgan"):
    """FeGAN's LSGAN: dense to 128 maps, two up-sampling convolutions; 1,049,729 + 98,113 values on MNIST."""

    latent: Width = 100
    image_size: Literal[32, 64] = 32
    norm_eps: Rate = 0.8


class Dcgan(Settings, tag_field="name", tag="dcgan"):
    """Transposed-convolution DCGAN; `width` is the number of maps at the largest resolution."""

    latent: Width = 64
    width: Width = 32
    image_size: Literal[32, 64] = 32


class Mlp(Settings, tag_field="name", tag="mlp"):
    """Lipizzaner's four-layer perceptron; also the model for two-dimensional points."""

    latent: Width = 64
    hidden: Width = 256
    image_size: Annotated[int, msgspec.Meta(ge=4, le=256)] = 28


class Degan(Settings, tag_field="name", tag="degan"):
    """The DEGAN paper's convolutional pair for 28 x 28 images, with its biases and BatchNorm trained."""

    latent: Width = 100
    image_size: Literal[28] = 28


class GnLenet(Settings, tag_field="name", tag="gn_lenet"):
    """decentralizepy's GN-LeNet: three 5 x 5 convolutions with GroupNorm and one dense layer."""

    image_size: Annotated[int, msgspec.Meta(ge=8, le=256)] = 28


class Resnet(Settings, tag_field="name", tag="resnet"):
    """A small residual network; `depth` layers in three stages, of which the first has `width` maps."""

    depth: Literal[8, 14, 20, 32, 44, 56] = 8
    # With 4 maps the CPU's convolutions of torch 2.14 (oneDNN) write beyond their memory.
    width: Annotated[int, msgspec.Meta(ge=8, le=1024, multiple_of=8)] = 16
    norm: Literal["group", "batch"] = "group"
    image_size: Annotated[int, msgspec.Meta(ge=8, le=256)] = 32


class MlpClassifier(Settings, tag_field="name", tag="mlp"):
    """Two dense layers; also the classifier for two-dimensional points."""

    hidden: Width = 256
    image_size: Annotated[int, msgspec.Meta(ge=4, le=256)] = 28


class Optimiser(Settings):
    """Adam (or plain SGD): `lr` is a classifier's rate, the other rates and the average's decay are a GAN's."""

    algorithm: Literal["adam", "sgd"] = "adam"
    lr: Rate = 1e-3
    generator_lr: Rate = 2e-4
    discriminator_lr: Rate = 2e-4
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    ema_decay: Fraction = 0.999


class Regularisation(Settings):
    """Penalties on the discriminator's gradient at the data."""

    r1_gamma: Weight = 0.0
    gradient_penalty: Weight = 10.0


# --- modes --------------------------------------------------------------------------------------

Updates = Literal["simultaneous", "alternating"]


class Local(Settings, tag_field="name", tag="local"):
    """No exchange: each worker trains alone on its shard."""

    updates: Updates = "simultaneous"


# How several workers' values become one; all but the mean (and the sum) bear some hostile workers.
Robust = Literal["mean", "clipped_mean", "median", "trimmed_mean", "centered_clip"]


class PartialExchange(Settings, tag_field="name", tag="partial_exchange"):
    """DEGAN and Ako: one of `parts` slices of the gathered gradient, or of the weights, is published in each step."""

    parts: Annotated[int, msgspec.Meta(ge=1, le=1024)] | Literal["auto"] = 4
    slack: Natural | None = 2
    codec: Literal["raw", "float16", "bfloat16", "int8", "topk", "sign"] = "float16"
    topk_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    rounding: Literal["nearest", "stochastic"] = "nearest"
    exchange: Literal["gradients", "parameters"] = "parameters"
    own: Literal["immediate", "delayed"] = "immediate"
    reduce: Literal["mean", "sum", "clipped_mean", "median", "trimmed_mean", "centered_clip"] = "mean"
    byzantine: Natural = 1
    updates: Updates = "simultaneous"


class Deadline(Settings):
    """How long the answers of a round are awaited: from what recent rounds took, within these bounds."""

    floor_s: Seconds = 10.0
    ceiling_s: Seconds = 300.0


class Stragglers(Settings):
    """FeGAN's weak workers: a fraction of all, drawn by the seed, take fewer local steps."""

    fraction: Fraction = 0.0
    local_steps: Positive | Literal["half"] = "half"


# Who leads: the first n workers, or these, in this order; without a value the first three.
Leaders = Positive | list[Natural] | None
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Federated(Settings, tag_field="name", tag="federated"):
    """FL-GAN and FeGAN: in each round a cohort trains the leader's model, which becomes their weighted mean.

    A step of `run` is a round. `cohort` is a number of workers; without it, it is `fraction` of the live ones.
    """

    leaders: Leaders = None
    leader_trains: bool = True
    fraction: Share = 0.5
    cohort: Positive | None = None
    sampling: Literal["uniform", "balanced"] = "uniform"
    share_histograms: bool = True
    local_steps: Positive = 50
    order: Literal["generator_first", "discriminator_first"] = "generator_first"
    weighting: Literal["uniform", "size", "kl"] = "size"
    scheme: Literal["exp", "linear", "dirac"] = "exp"
    sign: Literal["divergent_less", "as_released"] = "divergent_less"
    optimiser_state: Literal["keep", "reset", "average"] = "keep"
    quorum: Share = 0.5
    deadline: Deadline = Deadline()
    codec: Literal["raw", "float16", "bfloat16"] = "raw"
    reduce: Robust = "mean"
    byzantine: Natural = 1
    stragglers: Stragglers = Stragglers()


class MultiDiscriminator(Settings, tag_field="name", tag="multi_discriminator"):
    """MD-GAN: one generator at the leader, a discriminator at each worker; a step of `run` is a generator update.

    `swap_every` is in epochs of the workers' mean shard, each counted as (samples / batch_size) rounds; 0 for never;
    without a value 1 where there is somebody to swap with.
    """

    leaders: Leaders = None
    leader_trains: bool = True
    batches: Positive | Literal["log"] = 1
    discriminator_steps: Positive = 1
    swap_every: Weight | None = None
    swap_optimiser: bool = True
    state_every: Positive = 100
    quorum: Share = 0.5
    deadline: Deadline = Deadline()
    codec: Literal["raw", "float16", "bfloat16", "int8"] = "float16"
    feedback_codec: Literal["raw", "float16", "bfloat16", "int8"] = "float16"
    reduce: Robust = "mean"
    byzantine: Natural = 1


class Bus(Settings):
    """How the workers hold together. Times in seconds, sizes in bytes.

    Without a value `replay_bytes` is 512 MiB where slack is 0, because a replay then ends with the very weights
    of an undisturbed run, and else 64 MiB. With fewer than `min_peers` live peers a worker pauses
    until they are back. A contribution longer than `norm_gate` times the running
    median is left out, and after so many `offences` its sender is muted; 0 switches either off.
    """

    lease_s: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = 30.0
    replay_bytes: Natural | None = None
    unbounded_backlog: Positive = 64
    finish_timeout_s: Seconds = 60.0
    stall_timeout_s: Seconds = 600.0
    min_peers: Natural = 0
    norm_gate: Weight = 10.0
    offences: Natural = 10


class Security(Settings):
    """Where this worker's certificates and keys lie (`config.security`); `{worker}` in it stands for its number."""

    folder: str | None = None


class Run(Settings):
    """How long, and how often something is written. 0 switches a periodic thing off."""

    steps: Positive = 2000
    log_every: Positive = 10
    evaluate_every: Natural = 500
    evaluate_samples: Annotated[int, msgspec.Meta(ge=64, le=2**63 - 1)] = 5000
    snapshot_every: Natural = 500
    checkpoint_every: Natural | None = None
    keep_checkpoints: Positive = 3
    keep_best: bool = True


class Experiment(Settings, kw_only=True):
    """One experiment file. `peers` lists each worker's Redis in worker order, or counts local workers."""

    name: Name
    seed: Natural = 1
    peers: Positive | list[str] = 1
    connect_timeout_s: Seconds = 30.0
    device: Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|cuda(:[0-9]{1,4})?)\Z")] = "auto"
    data: Data
    model: Lsgan | Dcgan | Mlp | Degan | None = None
    classifier: GnLenet | Resnet | MlpClassifier | None = None
    loss: Literal["non_saturating", "least_squares", "hinge", "wasserstein_gp"] = "non_saturating"
    regularisation: Regularisation = Regularisation()
    optimiser: Optimiser = Optimiser()
    mode: Local | PartialExchange | Federated | MultiDiscriminator = PartialExchange()
    bus: Bus = Bus()
    security: Security = Security()
    run: Run = Run()

    @property
    def image_size(self) -> int:
        """Height and width of the samples, where they are images."""
        return (self.classifier if self.model is None else self.model).image_size

    @property
    def workers(self) -> int:
        """How many workers the experiment has."""
        return self.peers if isinstance(self.peers, int) else len(self.peers)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints; every snapshot unless said otherwise."""
        every = self.run.checkpoint_every
        return self.run.snapshot_every if every is None else every
