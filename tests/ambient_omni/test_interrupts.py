import os
import signal
import threading

import pytest

from ambient_omni.interrupts import StopRequest


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_ctrl_c_is_a_request():
    with StopRequest() as stop:
        assert not stop.requested
        interrupt()
        assert stop.requested


def test_the_second_ctrl_c_acts_at_once():
    with StopRequest():
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_afterwards_ctrl_c_acts_as_before():
    with StopRequest():
        pass
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_outside_the_main_thread_it_is_harmless():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
