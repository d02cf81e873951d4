"""Free memory: the system's own numbers, within a container's limit."""

import torch

from landscape.problem import memory

CPU = torch.device("cpu")


def test_available_memory_is_what_the_system_says(tmp_path, monkeypatch):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 600 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", info)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_memory(CPU) == 600 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert memory.free_memory(CPU) == 600 * 1024
    (tmp_path / "memory.max").write_text("300100\n")
    assert memory.free_memory(CPU) == 300000


def test_a_size_has_three_digits_and_no_exponent():
    assert [memory.size(n) for n in (0, 5, 1536, 1012 * 2**20, 1023.6 * 2**30)] == [
        *("0 bytes", "5 bytes", "1.5 KiB", "1012 MiB", "1024 GiB")
    ]


def test_a_system_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "missing")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_memory(CPU) == 4e9
