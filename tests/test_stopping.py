"""A stop on request: asked once it waits for a checkpoint, asked twice it comes at once."""

import os
import signal
import threading

import pytest

from genrag_cli import stopping
from genrag_cli.errors import Stopped


@pytest.fixture(autouse=True)
def _unasked():
    yield
    stopping._asked.clear()


def test_a_checkpoint_passes_until_a_stop_is_asked_for():
    stopping.check()
    assert not stopping.is_asked()
    stopping.ask()
    assert stopping.is_asked()
    with pytest.raises(Stopped) as raised:
        stopping.check()
    assert (raised.value.exit_code, raised.value.message) == (75, stopping.MESSAGE)


@pytest.mark.parametrize("name", stopping.SIGNALS)
def test_the_first_signal_waits_for_a_checkpoint_and_the_second_does_not(name):
    number = getattr(signal, name)
    with stopping.gracefully():
        os.kill(os.getpid(), number)
        assert stopping.is_asked()
        with pytest.raises(Stopped):
            stopping.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_one_signal_after_another_kind_is_a_second_one():
    with stopping.gracefully():
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("error", [None, Stopped("x"), KeyboardInterrupt()])
def test_handlers_and_the_request_do_not_outlive_the_block(error):
    before = [signal.getsignal(getattr(signal, name)) for name in stopping.SIGNALS]

    def block():
        with stopping.gracefully():
            stopping.ask()
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(type(error)):
            block()
    assert [signal.getsignal(getattr(signal, name)) for name in stopping.SIGNALS] == before
    assert not stopping.is_asked()


def test_another_thread_sees_the_request_and_takes_no_handlers():
    seen, before = [], signal.getsignal(signal.SIGTERM)

    def work():
        with stopping.gracefully():
            seen.append(signal.getsignal(signal.SIGTERM) is before)
            stopping.ask()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
    assert stopping.is_asked()
