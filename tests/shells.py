# SPDX-License-Identifier: Apache-2.0
"""Live shells on a terminal, with pmuctl's completion loaded: type, press TAB, read the line."""

import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pexpect

COMPLETIONS = Path(__file__).parents[1] / "completions"
SECONDS = 20

BASH = """
source {completions}/pmuctl.bash
bind 'set enable-bracketed-paste off'
bind '"\\C-xi": insert-completions'
bind -x '"\\C-]": printf %s "$READLINE_LINE" >{out}; : >{out}.whole'
"""

ZSH = """
fpath=({completions} $fpath)
autoload -U compinit && compinit -D -u
unsetopt list_beep
show() {{ print -rn -- "$BUFFER" >{out}; : >{out}.whole }}
zle -N show && bindkey '^]' show && bindkey '^I' complete-word && bindkey '^U' kill-whole-line
zle -C all-matches complete-word _generic && bindkey '^Xi' all-matches
zstyle ':completion:all-matches:*' insert yes
zstyle ':completion:all-matches::::' completer _all_matches _complete
"""

FISH = """
source {completions}/pmuctl.fish
function show; commandline >{out}; echo >{out}.whole; end
bind \\c] show
"""

SETUP = {"bash": BASH, "zsh": ZSH, "fish": FISH}
COMMAND = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}


class LiveShell:
    """An interactive shell in a directory of its own; `wrapper` is what it is run by."""

    def __init__(
        self,
        name: str,
        directory: Path,
        environ: Mapping[str, str],
        wrapper: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.directory = directory
        self._out = directory / ".line"
        setup = directory / ".setup"
        setup.write_text(
            SETUP[name].format(completions=COMPLETIONS, out=shlex.quote(str(self._out)))
        )
        self._wrapper = wrapper
        command = [*wrapper, *COMMAND[name]]
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
            **environ,
        }
        self._child = pexpect.spawn(
            command[0],
            command[1:],
            cwd=directory,
            env=self.environ,
            dimensions=(50, 200),
            timeout=SECONDS,
            encoding="utf-8",
        )
        self._child.delaybeforesend = None
        self.run(f"source {setup}")

    def run(self, line: str) -> str:
        """Carry out a line of shell and give what it printed."""
        # in two parts, so that it is not found in its own echo
        self._child.send(f"{line}\rprintf '%s%s\\n' END OF-COMMAND\r")
        self._child.expect_exact("ENDOF-COMMAND")
        return str(self._child.before)

    def type(self, text: str, keys: str = "\t") -> str:
        """The line after a text and keys have been typed; it is cleared again."""
        whole = self._out.with_name(".line.whole")
        whole.unlink(missing_ok=True)
        self._child.send(text + keys)
        self._child.send("\x1d")
        until = time.monotonic() + SECONDS
        while not whole.exists():
            if time.monotonic() > until:
                raise TimeoutError(f"{self.name} shows nothing after {text!r}")
            time.sleep(0.005)
        self._child.send("\x15")
        return self._out.read_text(encoding="utf-8").removesuffix("\n")

    def offers(self, text: str) -> list[str]:
        """All that could stand where a text ends, sorted."""
        if self.name == "fish":
            return sorted(line.partition("\t")[0] for line in self.ask_fish(text))
        line = self.type(text, "\x18i")
        word = text.rpartition(" ")[2]
        if line.rstrip() == text.rstrip():
            return []
        found = line.removeprefix(text.removesuffix(word)).split()
        # what stands before a = is not inserted again
        option = word.partition("=")[0] + "=" if "=" in word else ""
        return sorted(option + its.removeprefix(option).rstrip(",") for its in found)

    def ask_fish(self, text: str) -> list[str]:
        """The candidates with their descriptions, as fish itself tells them."""
        script = f"source {COMPLETIONS}/pmuctl.fish; complete -C {shlex.quote(text)}"
        done = subprocess.run(
            [*self._wrapper, "fish", "--no-config", "-c", script],
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    def shows(self, text: str, what: str) -> None:
        """After a text and TAB twice, `what` comes up on the screen."""
        self._child.send(text + "\t\t")
        self._child.expect_exact(what)
        self.type("", "")

    def close(self) -> None:
        """End the shell."""
        self._child.close(force=True)
