"""Log lines go to stderr from a command, and to run.log in the folder of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulltune.cli.options import Common
from fulltune.runtime.logs import log_to_stderr, run_log

LOG = logging.getLogger("fulltune.some.module")


@pytest.fixture(autouse=True)
def package_logger() -> Iterator[None]:
    """Leave the logger of the package as it was."""
    logger = logging.getLogger("fulltune")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_lines_from_before_and_after_the_file_is_named_are_written(tmp_path: Path) -> None:
    with run_log() as write_to:
        LOG.info("before %d", 1)
        LOG.debug("never")
        write_to(tmp_path / "run.log")
        LOG.warning("after")
        lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    LOG.warning("outside")
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO fulltune.some.module: before 1",
        "WARNING fulltune.some.module: after",
    ]
    assert len((tmp_path / "run.log").read_text(encoding="utf-8").splitlines()) == 2


def test_other_handlers_get_the_lines_that_they_get_without_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr("warning")
    with run_log() as write_to:
        write_to(tmp_path / "run.log")
        LOG.info("for the file")
        LOG.warning("for all")
    assert [record.message for record in caplog.records] == ["for all"]
    assert capsys.readouterr().err == "WARNING fulltune.some.module: for all\n"
    assert logging.getLogger("fulltune").propagate


def test_the_level_of_the_command_counts_and_lines_come_once(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("info")
    log_to_stderr("info")
    LOG.info("\x1b[31mred")
    LOG.debug("nothing")
    assert capsys.readouterr().err == "INFO fulltune.some.module: \\x1b[31mred\n"


def test_quiet_shows_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with Common(quiet=True).answering():
        LOG.warning("nobody sees this")
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_ends_the_log_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with run_log() as write_to:
        write_to(Path("/dev/full"))
        LOG.warning("one")
        LOG.warning("two")
    assert capsys.readouterr().err.count("Warning: /dev/full cannot be written: the log ends here.\n") == 1
