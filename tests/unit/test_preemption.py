import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tinybert_ds.errors import EXIT_FAULT, EXIT_PREEMPTED
from tinybert_ds.preemption import SIGNALS, Preemption, grace_problems, undisturbed


@pytest.fixture(autouse=True)
def handlers_as_before():
    """Later tests would inherit a signal that is ignored; so may this process, where it is under nohup."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_noted_and_kills_nobody(number):
    preemption = Preemption(60)
    with preemption.listening():
        assert not preemption.asked
        os.kill(os.getpid(), number)
        assert preemption.asked
        os.kill(os.getpid(), number)  # once more: a scheduler may be impatient
        preemption.done()
    assert signal.getsignal(number) is signal.SIG_IGN, "a late signal would kill a rank that is about to leave"


def test_the_time_limit_is_over_when_the_training_is():
    preemption = Preemption(60)
    with preemption.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    timer = preemption._timer
    assert timer is not None
    timer.join(5)
    assert not timer.is_alive(), "it would end a run that writes its result"


def test_without_a_signal_all_is_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption(60).listening():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(words, capture_output=True, text=True, timeout=50, check=False)


def test_a_rank_that_cannot_save_within_its_grace_leaves_by_itself():
    finished = run_python(
        """
        import os, signal, time
        from tinybert_ds.preemption import Preemption
        with Preemption(0.2).listening():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(60)
        """
    )
    assert finished.returncode == EXIT_FAULT
    assert "within --preempt_grace_seconds 0.2" in finished.stderr


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("before", ["pass", "with Preemption(60).listening(): pass"], ids=["before", "after"])
def test_a_signal_ends_a_command_at_once_where_no_step_is_under_way(number, before):
    finished = run_python(
        f"""
        import os, sys
        from tinybert_ds.stages.entry import prepare
        from tinybert_ds.preemption import Preemption
        class Torch:
            class accelerator:
                def is_available():
                    {before}
                    os.kill(os.getpid(), {int(number)})
        sys.modules["torch"] = Torch
        prepare()
        """
    )
    assert finished.returncode == EXIT_PREEMPTED, finished.stderr
    told = f"stopped by {number.name}, no step under way; start the same command again to go on\n"
    assert finished.stderr == told


def test_under_nohup_the_end_of_the_terminal_asks_for_nothing():
    finished = run_python(
        """
        import os, signal
        from tinybert_ds.preemption import Preemption, leave_when_asked
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        leave_when_asked()
        os.kill(os.getpid(), signal.SIGHUP)
        preemption = Preemption(60)
        with preemption.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            print("asked" if preemption.asked else "not asked", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            print("asked" if preemption.asked else "not asked", flush=True)
            preemption.done()
        """
    )
    assert finished.stdout == "not asked\nasked\n", finished.stderr
    assert finished.returncode == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_writes_its_results_is_not_disturbed(number):
    before = signal.getsignal(number)
    with undisturbed():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_more_grace_than_the_launcher_gives_is_refused_under_the_launcher_only():
    assert grace_problems(25, {"CROSS_SIZE": "1"}) == []
    assert grace_problems(120, {"RANK": "0"}) == []
    assert "kills its ranks 30 s after" in grace_problems(31, {"CROSS_SIZE": "1"})[0]
