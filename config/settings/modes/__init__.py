"""The settings of the modes, one file a mode, each with its own check.

To add a mode: its file here, its place in `Mode`, and a module of the same name in `degan/modes`.
"""

from config.settings.modes.federated import Federated
from config.settings.modes.local import Local
from config.settings.modes.multi_discriminator import MultiDiscriminator
from config.settings.modes.partial_exchange import PartialExchange

Mode = Local | PartialExchange | Federated | MultiDiscriminator
