"""Define what happens, as small records. Services emit them; logs, metrics and the heartbeat listen.

One module for each part of the suite that something happens to; everybody imports from here, where no event is missing.
Logs know all of them, so that every process reads all modules.
"""

from watcher.telemetry.events.base import Bus as Bus
from watcher.telemetry.events.base import Emit as Emit
from watcher.telemetry.events.base import Event as Event
from watcher.telemetry.events.base import Listener as Listener
from watcher.telemetry.events.listener import *
from watcher.telemetry.events.providers import *
from watcher.telemetry.events.supervisor import *
from watcher.telemetry.events.tasks import *
from watcher.telemetry.events.webhook import *
from watcher.telemetry.events.worker import *
