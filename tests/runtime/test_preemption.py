import os
import signal

from polyscene.runtime.preemption import StopRequest


def test_a_signal_before_the_loop_is_known_in_it():
    with StopRequest() as job:
        os.kill(os.getpid(), signal.SIGUSR2)
        with StopRequest() as loop:
            assert loop.signal is signal.SIGUSR2
            assert job.polled
        assert not job.polled


def test_a_signal_in_the_loop_is_known_after_it():
    with StopRequest() as job:
        with StopRequest() as loop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert loop.signal is signal.SIGTERM
            assert job.signal is None
        assert job.signal is signal.SIGTERM
        with StopRequest() as evaluation:
            assert evaluation.signal is signal.SIGTERM


def test_sigterm_after_the_warning_does_not_change_the_reason():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGUSR2


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(), StopRequest():
        pass
    assert signal.getsignal(signal.SIGTERM) is before
