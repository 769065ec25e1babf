"""Programs under test: what passes, what fails, and what the sandbox keeps from them."""

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from preftune.errors import ConfigError
from preftune.rewards import call_reward, resolve_reward
from preftune.rewards.code import Code, code_of, passes


def sandbox_fault() -> str:
    """Why this machine cannot make a sandbox; empty if it can."""
    program = shutil.which("bwrap")
    if program is None:
        return "bubblewrap is not installed"
    tried = subprocess.run(
        [program, "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True, text=True
    )
    return tried.stderr.strip() or ("" if tried.returncode == 0 else "bubblewrap does not run here")


needs_sandbox = pytest.mark.skipif(bool(sandbox_fault()), reason=sandbox_fault() or "a sandbox works")

ANSWER = """Here it is.

```python
def double(x):
    return 2 * x
```
"""


def test_the_code_of_an_answer():
    assert code_of(ANSWER) == "def double(x):\n    return 2 * x\n"
    assert code_of("```\na\n```\nand\n```python\nb\n```\nrun with\n```bash\nc\n```\n") == "b\n"
    assert code_of("```\na\n```\nand\n```\nb\n```") == "b\n"
    assert code_of("x = 1") == "x = 1"


@needs_sandbox
def test_rewards_by_hand():
    completions = [ANSWER, "def double(x): return x + x", "def double(x): return 3", "I do not know.", ANSWER]
    tests = [["assert double(2) == 4", "assert double(-1) == -2"]] * 4 + [None]
    assert Code()([""] * 5, completions, tests=tests) == [1, 1, 0, 0, None]
    assert Code(score="share")([""] * 3, completions[:3], tests=["assert double(1.5) == 3"] * 3) == [1, 1, 1]
    mixed = [["assert double(1.5) == 3", "assert double(1) == 2"]] * 3
    assert Code(score="share", parallel=1)([""] * 3, completions[:3], tests=mixed) == [1, 1, 0.5]


@needs_sandbox
@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import builtins; builtins.exit(0)",
        "print('passed')",
        "raise SystemExit",
        "def f(:",
        "\0",
        "\ud800",
    ],
)
def test_code_that_ends_early_or_is_none_has_not_passed(code):
    assert not passes(code, "assert f(1) == 1", 5.0, 512)


@needs_sandbox
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import os\nif os.fork() == 0: os.setsid()\nimport time; time.sleep(60)",
        "print('x' * 10**6)\nwhile True: print('x' * 10**6)",
    ],
)
def test_code_that_does_not_end_is_ended(code, tmp_path, monkeypatch):
    """The sandbox is started under a name of this test, by which what is left of it is found."""
    (tmp_path / "bwrap").symlink_to(str(shutil.which("bwrap")))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    start = time.monotonic()
    assert not passes(code, "", 1.5, 512)
    assert time.monotonic() - start < 15
    until = time.monotonic() + 5  # the kernel ends the processes of a namespace after its first one
    while sandboxes(tmp_path) and time.monotonic() < until:
        time.sleep(0.05)
    assert sandboxes(tmp_path) == []


def sandboxes(folder: Path) -> list[str]:
    """Command lines of the running sandboxes whose program is in this folder."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if f"{folder}/bwrap" in line]


@needs_sandbox
def test_memory_ends():
    assert not passes("x = bytearray(2**30)", "", 10.0, 256)
    assert passes("x = bytearray(2**20)", "", 10.0, 256)


@needs_sandbox
def test_files_of_the_user_are_not_there(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    monkeypatch.setenv("TOKEN", "s3cret")
    monkeypatch.chdir(tmp_path)
    for place in (str(secret), "secret", "/etc/passwd", "/root/.bashrc", "/home"):
        assert passes("", f"import os\nassert not os.path.exists({place!r})", 10.0, 512), place
    assert passes("", "import os\nassert 'TOKEN' not in os.environ", 10.0, 512)
    for place in ("/usr/x", "/x", "/proc/sysrq-trigger"):
        code = f"try:\n    open({place!r}, 'w').write('x')\nexcept OSError: stopped = True"
        assert passes(code, "assert stopped", 10.0, 512), place
    assert passes("open('own', 'w').write('x')", "assert open('own').read() == 'x'", 10.0, 512)


@needs_sandbox
def test_the_network_is_not_there():
    """A listener on this machine that the test process reaches, and the code under test does not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        code = f"import socket\ntry:\n    socket.create_connection(('127.0.0.1', {port}), 2)\n    reached = True\n"
        code += "except OSError:\n    reached = False"
        assert passes(code, "assert not reached", 10.0, 512)
        socket.create_connection(("127.0.0.1", port), 2).close()


@needs_sandbox
def test_tests_that_are_no_text_are_refused():
    with pytest.raises(ConfigError, match="Column 'tests' of reward 'code' holds no tests"):
        Code()([""], ["x"], tests=[3])
    reward = resolve_reward("code(tests=checks)")
    with pytest.raises(ConfigError, match="checks"):
        call_reward(reward, "code(tests=checks)", ["p"], ["c"], {}, 5.0)


def test_without_a_sandbox_it_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"needs the program bwrap.*apt install bubblewrap"):
        resolve_reward("code")


@needs_sandbox
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("limit_s=0", "limit_s"),
        ("memory_mb=1", "memory_mb"),
        ("score=half", "score"),
        ("parallel=0", "parallel"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ConfigError, match=message):
        resolve_reward(f"code({setting})")
