"""Several processes for one command: one leads, the others do their part of what it asks for.

The first one reads, shows, ranks and writes as one process alone does. The others are started by the same command
and take no notice of it: they wait to be asked for something, do it, and say that it is done. So what is wrong with it
is said once, and a command that asks for nothing is none of their business.

What belongs here is who is who and how they talk: by torch.distributed's gloo, whatever their devices are, once
`accelerate launch` or `torchrun` has started them. What they are asked for belongs to the modules that do it.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any


# a process that has died is noticed at once; one that hangs is waited for this long
PATIENCE = timedelta(hours=12)

# what a person is told in a sentence; all else is a bug
EXPECTED_ERRORS = (ValueError, ArithmeticError, ImportError, MemoryError, OSError)


class LostProcessError(RuntimeError):
    """A process has died."""


@dataclass
class Worker:
    """What a process that is asked for things keeps between them.

    Attributes:
        team ([`Team`]): that it is one of.
        tools (`Any`): whatever it has been asked to get ready.
        written (`list[str]`): the names of the pictures that it has written for what it is asked for now.
    """

    team: "Team"
    tools: Any = None
    written: list[str] = field(default_factory=list)


# has to be one that can be pickled
Request = Callable[[Worker], None]


@dataclass(frozen=True)
class Done:
    """What a process says when it is done.

    Attributes:
        error (`Exception`, *optional*): what kept it from doing all.
        written (`list[str]`): the names of the pictures that it has written.
    """

    error: Exception | None = None
    written: list[str] = field(default_factory=list)


def problems(said: list[Done]) -> list[str]:
    """A sentence for each process that could not do all."""
    return [f"process {number}: {done.error}" for number, done in enumerate(said) if done.error is not None]


def process_index() -> int:
    """This process's number; the first one, 0, leads."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes there are.

    Raises:
        ValueError: there are several, and nothing says how to reach the first.
    """
    number = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if number > 1 and missing:
        raise ValueError(
            f"WORLD_SIZE is {number} in the environment, but not {', '.join(missing)}; start several processes with"
            " `accelerate launch` or `torchrun`."
        )
    return number


class Team:
    """The processes of one command; one alone is a team too.

    Attributes:
        index (`int`): this process's number.
        count (`int`): how many there are.
    """

    index, count = 0, 1

    def __repr__(self) -> str:
        return "ALONE" if self.count == 1 else f"process {self.index} of {self.count}"

    def ask(self, task: Request | None) -> None:
        """Asks all others for something, or with `None` to end. All have to [`say`] when it is done."""

    def listen(self) -> Request | None:
        """What the first process asks for; one alone is asked for nothing."""
        return None

    def say(self, done: Done) -> list[Done]:
        """Says that what was asked for is done, and waits for the others.

        Returns:
            `list[Done]`: what each process says, in the first one; in others nothing.

        Raises:
            LostProcessError: one of them has died.
        """
        return [done]


class SeveralProcesses(Team):
    """This process and those that it was started with."""

    def __init__(self):
        import torch.distributed
        from accelerate import PartialState

        torch.distributed.init_process_group("gloo")
        # the way here is bounded by half an hour, torch's default; what is done together may take longer
        self._group: Any = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        self.index, self.count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        PartialState()  # gives each process a device of its own

    def ask(self, task: Request | None) -> None:
        import torch.distributed

        self._talk(lambda: torch.distributed.broadcast_object_list([task], src=0, group=self._group))

    def listen(self) -> Request | None:
        import torch.distributed

        asked: list[Request | None] = [None]
        self._talk(lambda: torch.distributed.broadcast_object_list(asked, src=0, group=self._group))
        return asked[0]

    def say(self, done: Done) -> list[Done]:
        import torch.distributed

        said: Any = [None] * self.count if self.index == 0 else None

        def talk() -> None:
            # this one waits for those that are alive, though others are not
            torch.distributed.monitored_barrier(self._group, timeout=PATIENCE, wait_all_ranks=True)
            torch.distributed.gather_object(done, said, dst=0, group=self._group)

        self._talk(talk)
        return said or []

    def _talk(self, how: Callable[[], None]) -> None:
        try:
            how()
        except RuntimeError:
            raise LostProcessError("a process has died; the same command with --resume goes on.") from None


ALONE = Team()


@cache
def join() -> Team:
    """Meets the other processes, if there are any.

    Raises:
        ValueError: nothing says how to reach the first one.
        LostProcessError: they do not come.
    """
    if process_count() == 1:
        return ALONE
    # what a launcher sends to end a process ends it as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler if process_index() == 0 else signal.SIG_DFL)
    # gloo's own words about processes that are gone
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    try:
        return SeveralProcesses()
    except RuntimeError as error:
        raise LostProcessError(f"The processes do not meet ({str(error).partition(chr(10))[0]}).") from None


def dismiss() -> None:
    """Lets the others end."""
    try:
        join().ask(None)
    except LostProcessError:
        pass  # those that are left notice that this one is gone


def work() -> int:
    """What every process but the first does: what it is asked for, until there is no more.

    Returns:
        `int`: the exit code.
    """
    import logging
    import warnings

    # all of them end at once; the first one has something to say about it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        team = join()
        worker = Worker(team)
        while (task := team.listen()) is not None:
            worker.written, problem = [], None
            try:
                task(worker)
            except EXPECTED_ERRORS as error:
                problem = error
            team.say(Done(problem, worker.written))
    except LostProcessError:
        return 1
    return 0
