"""The process beside each training process that notices when it dies or falls silent.

The monitors form a star: rank 0's monitor asks all others over UDP and decides; then each monitor
ends its own training process. A monitor shares a page of memory and a socket with its training
process, where `toolkit.cluster.watchdog` holds the other ends. Knows processes and datagrams.
Refuses to know torch: so it starts in 0.05 s, and shares no lock with the process that it watches.
Its port is as open as torch's own: anyone who reaches it can end the job, but do nothing else.
"""

import contextlib
import dataclasses
import functools
import json
import math
import mmap
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.cluster.heartbeats import of_nodes, write_forever
from toolkit.cluster.watchdog import (
    BEAT,
    BYE,
    END,
    HEARD,
    MAX_MESSAGE,
    NODE,
    OVER,
    PHASES,
    Job,
    Seen,
    State,
    Verdict,
    say,
    verdict,
)

SILENT_INTERVALS = 2.0  # heartbeat intervals without a beat before a training process is silent
ALONE_S = 5.0  # a monitor with news that rank 0's has not answered for this long acts alone
STAY_S = 2.0  # how long a monitor repeats its last message
LEAVE_S = 30.0  # how long a rank that failed by itself may take to exit
PATIENCE_S = 1.0  # between the three steps of ending a process: telling, dumping stacks, killing
COMMAND_S = 10.0  # how long the end waits for the commands that a loss starts
CONNECT_S = 60.0  # a monitor that has not heard rank 0's for this long after its start says so
TICK_S, RETRY_S, RENEW_S = 0.1, 0.5, 2.0  # one turn; between two calls; between two name look-ups
MAX_GAP_S = 0.5  # the most that one turn of the loop adds to the clock
BURST = 64  # datagrams per turn; the answers of a large job would overflow the socket's buffer
ASK = b"ask"  # what rank 0's monitor sends to the others until it sends OVER or END
FAMILY = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
MAPPED = socket.AI_V4MAPPED | socket.AI_ALL


def parse(message: bytes) -> State | None:
    """The state that a datagram holds; None if it is no message of a monitor."""
    # Anybody can send datagrams to this port, so nothing in them is trusted to have the right type.
    try:
        state = State(**json.loads(message))
    except (TypeError, ValueError, RecursionError):
        return None
    typed = all(type(getattr(state, it.name)) is it.type for it in dataclasses.fields(State))
    return state if typed and 0 <= state.phase < len(PHASES) else None


def open_socket() -> socket.socket:
    """A socket for datagrams over IPv4 and, where this machine has it, IPv6."""
    opened = socket.socket(FAMILY, socket.SOCK_DGRAM)
    if FAMILY == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    opened.setblocking(False)
    return opened


class Hub:
    """The centre of the star, which only rank 0's monitor has: it asks all monitors and decides."""

    def __init__(self, job: Job, *, own_log: str) -> None:
        self._own_log, self._last_line = own_log, ""
        self.word, self.seen = ASK, dict[int, Seen]()
        self._job, self._to_send = job, list[Seen]()
        self._asked = self._decided = -math.inf
        self._commands = list[subprocess.Popen[bytes]]()
        self._ends_at = math.inf
        self.socket, self._bound, self._now = open_socket(), False, 0.0
        if job.heartbeats:
            path = Path(job.heartbeats)
            look = functools.partial(of_nodes, self.seen, clock=lambda: self._now)
            write_forever(path, look, every_s=job.interval_s)

    def tick(self, now: float) -> None:
        """Read what monitors have sent, decide, and send our word to all, more often if there is
        news."""
        self._now = now
        with contextlib.suppress(OSError):  # nothing more to read, or the port is not free yet
            if not self._bound:
                self.socket.bind(("", self._job.port))
                self._bound = True
            while True:
                self._note(*self.socket.recvfrom(MAX_MESSAGE), now=now)
        if self.word == ASK and self._ends_at == math.inf:
            decision = verdict(self.seen.values(), job=self._job, now=now)
            if decision.line:
                self._begin_end(decision, now=now)
            elif self._all_left():
                self.decide(OVER, now=now)
        elif self.word == ASK and (now >= self._ends_at or not self._is_busy()):
            self.decide(END, now=now)
        news = self.word != ASK or any(one.state.fault for one in self.seen.values())
        wait_s = TICK_S if news else self._job.interval_s / 2
        if not self._to_send and now - self._asked >= wait_s:
            self._asked, self._to_send = now, list(self.seen.values())
        for one in self._to_send[:BURST]:
            self._send(one)
        del self._to_send[:BURST]

    def _begin_end(self, decision: Verdict, *, now: float) -> None:
        """Print the decision and start the commands for a loss; END is sent only afterwards."""
        # A job that has ended cannot be requeued any more, so the commands must run before.
        self._ends_at = now + COMMAND_S
        command = self._job.on_loss if decision.is_loss else ()
        parts = [decision.line]
        if decision.log and decision.log != self._own_log:
            parts.append(f"its log: {decision.log}")
        self._last_line = "; ".join(parts)
        say("; ".join([*parts, *([f"running {' '.join(command)}"] if command else [])]))
        if command:
            self._start(command)
        if decision.is_loss and decision.host and self._job.on_lost_node:
            self._start([*self._job.on_lost_node, decision.host])

    def _start(self, command: Sequence[str]) -> None:
        try:
            self._commands.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        except OSError as error:
            say(f"{command[0]}: {error.strerror}")

    def _is_busy(self) -> bool:
        return any(command.poll() is None for command in self._commands)

    def decide(self, word: bytes, *, now: float) -> None:
        """Set our last word, which is repeated until all monitors have left, or for STAY_S."""
        self.word, self._decided = word, now

    def is_done(self, now: float) -> bool:
        """Whether the last word has reached all monitors, or was repeated long enough."""
        return self.word != ASK and (self._all_left() or now - self._decided > STAY_S)

    def close(self) -> None:
        """Print again what ended the job, so that it is the last line of the log, below the stacks
        of all processes."""
        if self._last_line:
            say(self._last_line, who="error")

    def _all_left(self) -> bool:
        left = [one for one in self.seen.values() if one.state.left]
        return len(left) == self._job.world_size

    def _send(self, one: Seen) -> None:
        word = OVER if self.word == ASK and one.state.left else self.word
        with contextlib.suppress(OSError):
            self.socket.sendto(word, one.address)

    def _note(self, message: bytes, address: Any, *, now: float) -> None:
        state = parse(message)
        if state is None or (state.job, state.world_size) != (self._job.name, self._job.world_size):
            return
        old = self.seen.get(state.rank)
        if old and (old.state.host, old.state.pid) != (state.host, state.pid):
            return  # a process of another job with the same name and size
        one = Seen(state, address, heard=now, changed=now)
        if old and old.state.entered == state.entered:
            one.changed = old.changed
        if state.fault:
            # Keep the time of the FIRST report: the oldest fault is probably the cause of the rest.
            one.failed = min(old.failed if old else now, now)
        self.seen[state.rank] = one
        if state.left:  # answer at once, since it waits only for this
            self._send(one)


class Monitor:
    """Watches the training process that started it, and ends that process when told to."""

    def __init__(self, job: Job, state: State, *, control: int, memory: int) -> None:
        self._job, self._state = job, state
        self._now, self._looked = 0.0, time.monotonic()
        self._hub = Hub(job, own_log=state.log) if state.rank == 0 else None
        self._control, self._wire = socket.socket(fileno=control), open_socket()
        self._control.setblocking(False)
        self._ends = [self._control, self._wire, *([self._hub.socket] if self._hub else [])]
        self._cells = memoryview(mmap.mmap(memory, mmap.PAGESIZE)).cast("q")
        self._stat = -1
        # Kept open: the number of a dead process may soon belong to another one.
        with contextlib.suppress(OSError):  # the process is gone already
            self._stat = os.open(f"/proc/{state.pid}/stat", os.O_RDONLY)
        self._gone, self._exit_status = False, -1
        self._beat, self._beat_at, self._news_at = -1, 0.0, math.inf
        self._target: Any = None
        self._renew_at, self._sent_at = 0.0, -math.inf
        self._heard, self._ever_heard, self._warned = 0.0, False, False
        self._word, self._ends_at, self._pressed = b"", math.inf, 0

    def run(self) -> None:
        """Watch until the process is gone or has left, and the other monitors know about it."""
        while not self._is_done():
            select.select(self._ends, [], [], TICK_S)
            # The clock of this monitor counts only the time in which it runs: when a scheduler
            # suspends the whole job, this process too, no rank must look silent afterwards.
            instant = time.monotonic()
            self._now += min(instant - self._looked, MAX_GAP_S)
            self._looked = instant
            self._look()
            self._listen()
            self._talk()
            if self._hub:
                self._hub.tick(self._now)
                if self._gone and self._state.left and self._hub.word == ASK:
                    self._hub.decide(OVER, now=self._now)
            self._press()
        if self._hub:
            self._hub.close()
        self._state.left = True
        self._send()
        self._tell(OVER)

    def _is_done(self) -> bool:
        self._state.left |= self._word == END and self._gone
        unanswered = self._state.left and self._now - self._news_at > STAY_S
        over = self._word == OVER or (self._word == END and self._gone) or unanswered
        return over and (self._hub is None or self._hub.is_done(self._now))

    def _look(self) -> None:
        """Learn from the kernel, the socket and the shared page how the training process is."""
        # The kernel gives an orphan another parent, so this notices the death of the process.
        state, gone = self._state, os.getppid() != self._state.pid
        state.step, state.phase, state.entered, beat = self._cells[: BEAT + 1].tolist()
        # Only after asking the kernel: if the process is gone, its last message is there by now.
        self._read()
        if beat != self._beat or gone or state.left or state.fault:
            self._beat, self._beat_at = beat, self._now
        elif why := self._silence(self._now - self._beat_at):
            self._accuse(f"does not respond {state.place}: {why}", certain=True)
        if gone and not self._gone:
            self._gone = True
            self._exit_status = max(self._exit_status, self._read_stat()[1])
            if not (state.left or state.fault or self._word):
                self._accuse(f"{_death(self._exit_status)} {state.place}", certain=True)

    def _accuse(self, what: str, *, certain: bool) -> None:
        self._state.fault, self._state.certain = f"{self._state.name} {what}"[:1000], certain
        self._news_at = self._now

    def _silence(self, silent_s: float) -> str:
        """Why the process does not beat; empty if it beats or has an excuse, such as a slow disk, a
        debugger, or libraries that load."""
        if silent_s <= SILENT_INTERVALS * self._job.interval_s:
            return ""
        letter, _ = self._read_stat()
        if letter == "T":
            return "a signal has stopped it"
        excused = letter in ("D", "t") or PHASES[self._state.phase] == "load"
        return "" if excused else f"no beat for {silent_s:.0f} s, something holds Python's lock"

    def _read(self) -> None:
        """Read what the training process says; its end of the socket closes when it exits."""
        while self._control in self._ends:
            try:
                word = self._control.recv(MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                word = b""
            if word == BYE:
                self._state.left, self._news_at = True, self._now
                self._tell(OVER)
            elif word:
                text, is_node = word.removeprefix(NODE).decode(errors="replace"), word[:5] == NODE
                what = "cannot go on" if is_node else "failed"
                self._accuse(f"{what} {self._state.place}: {text}", certain=is_node)
            else:
                self._ends.remove(self._control)
                # Its parent may reap it at any moment, and then the status can no longer be read.
                _, self._exit_status = self._read_stat()

    def _read_stat(self) -> tuple[str, int]:
        """State letter and exit status of the process, as in proc(5); "" and -1 once it is
        reaped."""
        try:
            fields = os.pread(self._stat, 4096, 0).rpartition(b")")[2].split()
        except OSError:
            return "", -1
        return fields[0].decode(), int(fields[49])

    def _listen(self) -> None:
        """Read what rank 0's monitor has sent: obey its last word, and answer with our state."""
        asked = False
        with contextlib.suppress(OSError):
            while True:
                word, _ = self._wire.recvfrom(MAX_MESSAGE)
                self._heard, self._ever_heard, asked = self._now, True, True
                if word in (OVER, END):
                    self._obey(word)
        if asked:
            self._send()

    def _talk(self) -> None:
        """Send news to rank 0's monitor, and call it while it is silent; if it stays silent, decide
        alone."""
        state, job, silent_s = self._state, self._job, self._now - self._heard
        wait_s = TICK_S if self._news_at < math.inf else RETRY_S
        calls = wait_s == TICK_S or not self._ever_heard or silent_s > job.interval_s
        if calls and self._now - self._sent_at >= wait_s:
            self._send()
        if self._word or state.left:
            return
        where = f"rank 0's monitor at {job.address}:{job.port}"
        if self._now - max(self._news_at, self._heard) > ALONE_S:
            say(f"{state.fault} ({where} does not answer)")
            self._obey(END)
        elif self._ever_heard and job.is_cut(silent_s):
            say(f"rank 0 is gone, its node or network: {where} is not heard by {state.name}")
            self._obey(END)
        elif not self._ever_heard and silent_s > CONNECT_S and not self._warned:
            self._warned = True
            say(f"{state.name} is not watched with the others: {where} has not answered yet")

    def _send(self) -> None:
        """Send our state to rank 0's monitor. Until it has answered once, try its addresses in
        turn: not all of them need be reachable from here."""
        self._sent_at, job = self._now, self._job
        with contextlib.suppress(OSError):  # no network, or the name has no address yet
            if not self._ever_heard and self._now >= self._renew_at:
                self._renew_at = self._now + RENEW_S
                addresses = socket.getaddrinfo(
                    job.address, job.port, FAMILY, socket.SOCK_DGRAM, flags=MAPPED
                )
                self._target = addresses[int(self._now / RENEW_S) % len(addresses)][4]
            if self._target:
                message = json.dumps(dataclasses.asdict(self._state))
                self._wire.sendto(message.encode(), self._target)

    def _tell(self, word: bytes) -> None:
        with contextlib.suppress(OSError):
            self._control.send(word)

    def _obey(self, word: bytes) -> None:
        """Take OVER or END as our last word; the first one counts. A rank that has failed by itself
        gets time to exit with its own error."""
        if self._word:
            return
        self._word, self._ends_at = word, self._now
        if self._state.fault and not self._state.certain:
            self._ends_at += LEAVE_S
            self._tell(HEARD)

    def _press(self) -> None:
        """End the process in three steps, PATIENCE_S apart: tell it to end; dump its stacks by a
        signal, for a process that no longer runs Python; kill it."""
        due = int((self._now - self._ends_at) / PATIENCE_S) if self._word == END else -1
        while self._pressed <= min(due, 2) and os.getppid() == self._state.pid:
            if self._pressed == 0:
                self._tell(END)
                if self._read_stat()[0] == "T":  # stopped: dump its stacks where SIGCONT wakes it
                    os.kill(self._state.pid, signal.SIGQUIT)
            number = (signal.SIGCONT, signal.SIGQUIT, signal.SIGKILL)[self._pressed]
            os.kill(self._state.pid, number)
            self._pressed += 1


def _death(status: int) -> str:
    """How a process with this exit status died, in words; -1 if the status is unknown."""
    if status == -1:
        return "ended without a word (killed?)"
    if os.WIFEXITED(status):
        return f"ended with exit code {os.WEXITSTATUS(status)} and without a word"
    number = os.WTERMSIG(status)
    name = next((one.name for one in signal.Signals if one == number), f"signal {number}")
    return f"was killed by {name}" + " (out of memory?)" * (number == signal.SIGKILL)


def main(facts: str) -> None:
    """Run the monitor. `facts` is JSON: the job, the state of the rank, and the descriptors of the
    socket and the shared memory."""
    job, state, control, memory = json.loads(facts)
    Monitor(Job(**job), State(**state), control=control, memory=memory).run()
