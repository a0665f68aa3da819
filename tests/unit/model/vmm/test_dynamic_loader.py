# SPDX-License-Identifier: Apache-2.0
"""A program that a dynamic loader starts is the program, not the loader."""

import pytest

from pmuctl.model.vmm.dynamic_loader import skip_loader

VMM = ["/usr/bin/qemu-system-aarch64", "-name", "web1"]


@pytest.mark.parametrize(
    "words",
    [
        "/lib/ld-linux-aarch64.so.1",
        "/lib/ld-linux-aarch64.so.1 --library-path /opt/lib",
        "/nix/store/x-glibc-2.40/lib/ld-linux-aarch64.so.1 --argv0 q --preload /a.so",
        "/lib64/ld-linux-x86-64.so.2 --inhibit-cache --library-path=/opt/lib",
        "/lib/ld-musl-aarch64.so.1 --library-path /opt/lib --",
        "/lib/ld-2.31.so",
        "ld.so",
    ],
)
def test_a_loader_and_its_options_are_left_out(words: str) -> None:
    assert skip_loader([*words.split(), *VMM]) == VMM


@pytest.mark.parametrize(
    "words",
    [
        *("", "/lib/ld-linux-aarch64.so.1", "/lib/ld-linux-aarch64.so.1 --version"),
        *("ld.so --library-path", "ld -o x", "ld.lld a.so", "/usr/bin/ld.gold x", "build.so qemu"),
    ],
)
def test_what_starts_no_program_stays(words: str) -> None:
    assert skip_loader(words.split()) == words.split()
