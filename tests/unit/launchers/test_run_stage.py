import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def command(stages: Path, name: str, *words: str) -> list[str]:
    return [sys.executable, "launchers/run_stage.py", "--stages_file", str(stages), "--name", name, "--", *words]


def run(stages: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(stages, name, *words), cwd=ROOT, capture_output=True, text=True, check=False)


def append(log: Path, more: str = "") -> list[str]:
    return [sys.executable, "-c", f"open({str(log)!r}, 'a').write('x'); {more}"]


@pytest.fixture
def stages(tmp_path) -> Path:
    return tmp_path / "out" / "stages.json"


def test_a_finished_stage_is_not_run_again_and_keeps_its_seconds(tmp_path, stages):
    log = tmp_path / "log"
    assert run(stages, "one", *append(log, "import time; time.sleep(0.3)")).returncode == 0
    recorded = json.loads(stages.read_text())
    again = run(stages, "one", *append(log, "import time; time.sleep(0.3)"))
    assert again.returncode == 0
    assert "finished before" in again.stdout
    assert log.read_text() == "x"
    assert json.loads(stages.read_text()) == recorded
    assert [(stage["name"], stage["finished"]) for stage in recorded] == [("one", True)]
    assert 0.3 <= recorded[0]["seconds"] < 5


def test_stages_stay_in_the_order_of_their_first_run_and_another_command_is_run(tmp_path, stages):
    log = tmp_path / "log"
    for name in ("one", "two", "one"):
        assert run(stages, name, *append(log)).returncode == 0
    assert log.read_text() == "xx"
    assert run(stages, "one", *append(log, "print('changed')")).returncode == 0
    assert log.read_text() == "xxx"
    assert [stage["name"] for stage in json.loads(stages.read_text())] == ["one", "two"]


def test_a_failing_stage_passes_its_exit_code_on_and_is_run_again(tmp_path, stages):
    log = tmp_path / "log"
    failing = append(log, "raise SystemExit(3)")
    assert run(stages, "one", *failing).returncode == 3
    assert json.loads(stages.read_text())[0]["finished"] is False
    assert run(stages, "one", *failing).returncode == 3
    assert log.read_text() == "xx"
    killed = run(stages, "two", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert killed.returncode == 128 + 9


def test_the_seconds_of_a_stage_have_the_start_of_this_very_command_in_them(tmp_path, stages):
    slow = tmp_path / "run_stage.py"
    script = (ROOT / "launchers" / "run_stage.py").read_text()
    slow.write_text(script.replace("import contextlib\n", "import contextlib\nimport time; time.sleep(1.5)\n"))
    words = command(stages, "one", "true")
    subprocess.run([words[0], str(slow), *words[2:]], cwd=ROOT, check=True)
    (stage,) = json.loads(stages.read_text())
    assert stage["seconds"] > 1.5


def test_the_time_of_a_killed_attempt_counts(tmp_path, stages):
    script = ROOT / "launchers" / "run_stage.py"
    fast = tmp_path / "run_stage.py"  # the same with a faster heartbeat
    fast.write_text(script.read_text().replace("HEARTBEAT_SECONDS = 5.0", "HEARTBEAT_SECONDS = 0.05"))
    sleeper = f"import os, time; time.sleep(0 if os.path.exists({str(tmp_path / 'go')!r}) else 3)"
    words = command(stages, "one", sys.executable, "-c", sleeper)
    process = subprocess.Popen([words[0], str(fast), *words[2:]], cwd=ROOT)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (stages.exists() and json.loads(stages.read_text())[0]["seconds"] > 0.5):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "go").touch()
    assert run(stages, "one", sys.executable, "-c", sleeper).returncode == 0
    (stage,) = json.loads(stages.read_text())
    assert stage["finished"]
    assert stage["seconds"] > 0.5


def test_free_port_is_replaced_by_a_number_and_the_command_stays_the_same(stages):
    words = [sys.executable, "-c", "import sys; print('port', int(sys.argv[1]))", "FREE_PORT"]
    assert "port " in run(stages, "one", *words).stdout
    assert "finished before" in run(stages, "one", *words).stdout


def test_a_program_that_is_not_there_and_a_foreign_file_end_with_exit_code_2(stages):
    result = run(stages, "one", "no-such-program")
    assert result.returncode == 2
    assert "cannot start no-such-program" in result.stderr
    stages.parent.mkdir(exist_ok=True)
    stages.write_text('{"mine": 1}')
    result = run(stages, "one", "true")
    assert result.returncode == 2
    assert "is damaged, or not of this program" in result.stderr
    assert "Traceback" not in result.stderr
