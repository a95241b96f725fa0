"""A batch: each slide is claimed, worked on while the next one is being opened and read, and its fate written down.

A bad slide has a reason and the others go on. Several workers may run on the same list; what another holds is waited
for, and taken over where its worker is gone. Knows the order of things. Does not know what is made of a slide.
"""

import contextlib
import resource
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from genrag_cli import stopping
from genrag_cli.errors import GeneragError, SlideError, Stopped, UsageError
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.pipeline.batch.listening import SlideListener
from genrag_cli.pipeline.batch.outcome import (
    BatchOptions,
    Outcome,
    begin_status,
    find_mark,
    stands,
    status_of,
    time_now,
)
from genrag_cli.pipeline.batch.overlay import picture_tissue
from genrag_cli.pipeline.batch.staging import Stage, remote_stamp
from genrag_cli.pipeline.batch.work import B, Finished, Work
from genrag_cli.slides.files import expect_there
from genrag_cli.stores.atomic import explain, remove, tidy
from genrag_cli.stores.claims import Claim, ClaimLostError, Claims, claim_path
from genrag_cli.stores.seal import check, recorded_digest
from genrag_cli.stores.status import (
    FINISHED,
    SlideStatus,
    State,
    output_size,
    read_status,
    source_stamp,
    write_status,
)
from genrag_cli.types import Listener, fingerprint

POLL_S = 2.0
"""Between two looks at what other workers hold."""


@dataclass
class _Taken(Generic[B]):
    """A job that this worker has claimed; opened, laid out and being read by another thread."""

    job: Job
    target: Path
    claim: Claim | None
    status: SlideStatus
    before: SlideStatus | None
    """As it was when this run came."""
    listener: SlideListener
    began: float
    future: "Future[None] | None" = None
    source: Path | None = None
    key: str = ""
    begun: B | None = None
    found: Finished | None = None
    """What stands already."""


class Batch(Generic[B]):
    """Runs a command over slides.

    Args:
        work: the command.
        options: of the batch.
        listener: told what happens.
        failed: called with the reason of every failure as it comes.
    """

    def __init__(
        self, work: Work[B], options: BatchOptions, listener: Listener,
        failed: Callable[[GeneragError], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.work, self.options, self.listener, self.failed = work, options, listener, failed
        self.claims = Claims(options.lease_s)
        self.outcomes: list[Outcome] = []
        self._stage: Stage | None = None
        self._queue: deque[Job] = deque()
        self._held: deque[Job] = deque()
        self._alone = False
        self._taken: list[_Taken[B]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Works on all jobs.

        Returns:
            An outcome for each, in the order in which they ended.

        Raises:
            UsageError: where two slides would go into one file.
            Stopped: where that was asked for; `outcomes` holds what is known by then.
        """
        self._expect_places(jobs)
        self._alone = len(jobs) == 1
        if self.options.stage is not None and not self.options.dry_run:
            self._stage = Stage(self.options.stage)
        self._queue.extend(jobs)
        try:
            current = self._take(patient=True)
            while current is not None:
                following = self._take(patient=False)
                self._complete(current)
                current = following or self._take(patient=True)
            for job in self._held:
                self._leave(job)
        except (KeyboardInterrupt, Stopped):
            stopping.ask()  # of the thread that begins slides, too
            raise
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            for taken in list(self._taken):
                with contextlib.suppress(GeneragError):  # a full disk must not hide why this ends
                    self._end(taken, _ending(taken.found, otherwise="stopped"), taken.found)
                self._let_go(taken)
            if self._stage is not None:
                self._stage.close()
        return self.outcomes

    def _expect_places(self, jobs: Sequence[Job]) -> None:
        slides: dict[Path, str] = {}
        for job in jobs:
            try:
                target = self.work.target(job).absolute()
            except UsageError:  # of this job alone; it is said when its turn comes
                continue
            if target in slides:
                raise UsageError(
                    f"{slides[target]} and {job.slide} would both be written to {target}",
                    "Give each an output of its own: another name or out in the manifest, or a folder for --out.",
                )
            slides[target] = job.slide

    def _take(self, *, patient: bool) -> _Taken[B] | None:
        """Claims the next job that needs work and has it begun; None where there is none, or none now."""
        told = False
        while True:
            for jobs in (self._queue, self._held):
                for _ in range(len(jobs)):
                    stopping.check()
                    job = jobs.popleft()
                    try:
                        taken = self._try(job)
                    except GeneragError as error:
                        self._fail_unclaimed(job, error)
                    else:
                        if taken is not None:
                            return taken
            if not (self._held and patient and self.options.wait):
                return None
            if not told:
                names = ", ".join(j.name for j in list(self._held)[:5])
                self.listener.say(f"waiting for {len(self._held)} slides that other workers hold: {names}")
                told = True
            time.sleep(min(POLL_S, self.options.lease_s / 4))

    def _try(self, job: Job) -> _Taken[B] | None:
        """Claims a job; None where it is done, or another worker's."""
        if self._alone and job.slide and not job.is_remote:
            expect_there(job.path)  # a mistyped name leaves nothing behind
        target, options = self.work.target(job), self.work.options_key(job)
        done = self._marked(job, target, options)
        # Beside what is done lies a claim where its worker is about to let go, or was killed then: it is to go too.
        if done is not None and (self.options.dry_run or not self.options.wait or not claim_path(target).exists()):
            self._skip(job, target, done)
            return None
        claim = None
        if not self.options.dry_run:
            claim = self.claims.take(target)
            if claim is None:
                self._held.append(job)
                return None
            if (done := self._marked(job, target, options)) is not None:  # meanwhile
                claim.release()
                self._skip(job, target, done)
                return None
        before = read_status(status_of(target, self.work.kind))
        status = begin_status(job, target, self.work.kind, options, before)
        listener = SlideListener(self.listener, job.name)
        taken: _Taken[B] = _Taken(job, target, claim, status, before, listener, time.monotonic())
        self._taken.append(taken)
        if claim is not None:
            try:
                write_status(status_of(target, self.work.kind), status)
            except BaseException:
                self._let_go(taken)
                raise
        self.listener.event("slide_started", slide=job.slide, name=job.name, output=str(target))
        taken.future = self._pool.submit(self._begin, taken)
        return taken

    def _begin(self, taken: _Taken[B]) -> None:
        """Settles whether there is anything to do, and opens, lays out and begins to read the slide."""
        job, status = taken.job, taken.status
        if job.slide:
            status.source = remote_stamp(job.slide) if job.is_remote else source_stamp(job.path)
            if self._stage is not None:
                taken.source = self._stage.fetch(job, taken.listener)
            elif not job.is_remote:
                taken.source = job.path
            else:  # a dry run does not fetch
                return
        status.slide_digest = self.work.digest(taken.source)
        taken.key = status.key = fingerprint(status.slide_digest, status.options)
        if not self.options.overwrite:
            taken.found = self._find_done(taken)
        if taken.found is not None:
            return
        taken.begun = self.work.begin(job, taken.source, taken.listener)
        if self.options.overlap and not self.options.dry_run:
            taken.begun.advance()

    def _find_done(self, taken: _Taken[B]) -> Finished | None:
        """What stands already and was made in just this way."""
        target, before = taken.target, taken.before
        if before and before.state in FINISHED and before.key == taken.key and stands(target, before):
            return Finished(before.spots or 0, before.bad_tiles, before.facts)
        if before and before.size and not stands(target, before) and (found := check(target)).state == "damaged":
            if target.exists():
                taken.listener.warn(f"{target}: {found.reason}; making it again")
            if not self.options.dry_run:
                remove(target)
            return None
        return self.work.find_done(target, taken.key, taken.listener) if target.exists() else None

    def _complete(self, taken: _Taken[B]) -> None:
        """Finishes a job and writes down what became of it; one that is stopped stays with those that are taken."""
        job, target = taken.job, taken.target
        try:
            done = self._finish(taken)
            if done is None:
                self._tell(Outcome(job, target, taken.status, skipped=True))
            else:
                self._end(taken, _ending(done), done)
        except Stopped:
            raise
        except ClaimLostError as error:
            self._lose(taken, error)
        except GeneragError as error:
            self._fail(taken, error)
        except OSError as error:
            self._fail(taken, explain(error, target))
        except MemoryError:
            self._fail(taken, GeneragError(f"{job.slide}: out of memory", "Give it more, or fewer --genes."))
        except Exception as error:  # a defect, which must not take the night's other slides along
            if self.options.debug:
                raise
            what = f"{job.slide}: unexpected {type(error).__name__}: {error}"
            self._fail(taken, GeneragError(what, "--debug shows where."))
        self._let_go(taken)

    def _finish(self, taken: _Taken[B]) -> Finished | None:
        """The result; None in a dry run."""
        job, target, listener, work = taken.job, taken.target, taken.listener, self.work
        assert taken.future is not None
        while not wait_for([taken.future], timeout=0.5).done:
            stopping.check()
        taken.future.result()
        if taken.found is not None:
            listener.say(f"{target}: already done")
            tidy(target)
            return taken.found
        if taken.begun is None:
            listener.say(f"{job.slide}: would be fetched; more is known then")
            return None
        if self.options.dry_run:
            listener.say(work.plan(taken.begun, target))
            return None
        laid = taken.begun.laid
        if laid is not None:
            if job.slide and laid.digest != taken.status.slide_digest:
                raise SlideError(f"{job.slide}: replaced by another file meanwhile", "Run the same command again.")
            if not len(laid.grid):
                listener.warn(f"{job.name}: no tissue found, so there are no spots; the output says so")
            if self.options.overlay:
                with listener.timed("overlay"):
                    picture_tissue(laid, target.parent, job.name)
        done = work.finish(taken.begun, job, target, taken.key, listener)
        work.describe(job, target, done, listener.seconds, listener)
        return done

    def _end(self, taken: _Taken[B], state: State, done: Finished | None = None) -> None:
        """Writes a status, and lets go of the slide.

        Raises:
            ClaimLostError: where the output is another worker's by now, and so is its status.
            OutputError: where it cannot be written.
        """
        status, path, n_reader = taken.status, status_of(taken.target, self.work.kind), 0
        skipped = taken.found is not None
        if taken.begun is not None:
            laid = taken.begun.laid
            if laid is not None:
                status.facts |= laid.facts()
            taken.begun.close()
            if laid is not None:
                n_reader = laid.slide.peak_memory
        status.state, status.ended = state, time_now()
        status.peak_memory = n_reader + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        status.seconds = {k: round(v, 3) for k, v in taken.listener.seconds.items()}
        status.seconds["total"] = round(time.monotonic() - taken.began, 3)
        status.warnings = taken.listener.warnings
        if done is not None:
            status.spots, status.bad_tiles = done.n_spots, done.n_bad_tiles
            status.facts |= done.facts
            status.size, status.sha256 = output_size(taken.target), recorded_digest(taken.target)
            if skipped and taken.before is not None:  # what was true of the run that made it
                status.seconds, status.facts = taken.before.seconds, taken.before.facts | done.facts
        if taken.claim is not None:
            taken.claim.expect_held()
            write_status(path, status)
        if state != "stopped":
            self._tell(Outcome(taken.job, taken.target, status, skipped=skipped))

    def _fail(self, taken: _Taken[B], error: GeneragError) -> None:
        if self._stage is not None:
            self._stage.name_slide(error, taken.source, taken.job)
        taken.status.reason, taken.status.hint = error.message, error.hint
        taken.found = None
        try:
            self._end(taken, "failed")
        except ClaimLostError as lost:
            self._lose(taken, lost)
            return
        except GeneragError as other:  # nothing can be written, not even that
            taken.listener.warn(other.message)
            self._tell(Outcome(taken.job, taken.target, taken.status))
        self.outcomes[-1].error = error
        self.failed(error)

    def _lose(self, taken: _Taken[B], error: ClaimLostError) -> None:
        """Leaves a slide to the worker that took it over, and looks at it again later."""
        taken.listener.warn(error.message)
        self._held.append(taken.job)

    def _fail_unclaimed(self, job: Job, error: GeneragError) -> None:
        """Of options that cannot be right, or a place where nothing can be written."""
        status = SlideStatus(
            "failed", job.slide, "", self.work.kind, reason=error.message, hint=error.hint, ended=time_now()
        )
        self._tell(Outcome(job, Path(), status, error=error))
        self.failed(error)

    def _skip(self, job: Job, target: Path, status: SlideStatus) -> None:
        self.listener.say(f"{target}: already done")
        tidy(target)
        self._tell(Outcome(job, target, status, skipped=True))

    def _tell(self, outcome: Outcome) -> None:
        """Keeps an outcome, and says so."""
        self.outcomes.append(outcome)
        status = outcome.status
        state = "held" if outcome.held_by else "planned" if status.state == "running" else status.state
        self.listener.event(
            "slide_ended", slide=outcome.job.slide, name=outcome.job.name, state=state, spots=status.spots,
            output=str(outcome.target) if status.output else "", skipped=outcome.skipped,
            reason=status.reason, seconds=status.seconds,
        )  # fmt: skip

    def _leave(self, job: Job) -> None:
        """Notes a job that another worker has."""
        target = self.work.target(job)
        holder = self.claims.holder(target)
        self.listener.say(f"{job.name}: being worked on by {holder}")
        status = read_status(status_of(target, self.work.kind)) or SlideStatus("running", job.slide, target.name)
        self._tell(Outcome(job, target, status, skipped=True, held_by=holder))

    def _marked(self, job: Job, target: Path, options: str) -> SlideStatus | None:
        return None if self.options.overwrite else find_mark(job, target, self.work.kind, options)

    def _let_go(self, taken: _Taken[B]) -> None:
        """Closes, releases and removes what belongs to a job."""
        self._taken.remove(taken)
        if taken.future is not None and not taken.future.cancel():
            wait_for([taken.future])
        if taken.begun is not None:
            taken.begun.close()
        if self._stage is not None and taken.source is not None:
            self._stage.drop(taken.source)
        if taken.claim is not None:
            taken.claim.release()


def _ending(done: Finished | None, otherwise: State = "done") -> State:
    if done is None:
        return otherwise
    return "done" if done.n_spots else "empty"
