"""docs/compatibility.md says of each command of mqadmin what the script of tests/oracle says."""

import os
from pathlib import Path

from harness.mqadmin_table import SCRIPT, Step, commands, table

PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"
BEGIN, END = "<!-- mqadmin, by make rewrite -->\n", "<!-- end of mqadmin -->\n"


def test_the_page_has_the_table_of_today() -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    today = f"{before}{BEGIN}\n{table()}\n\n{END}{after}"
    if os.environ.get("SATURNMQ_REWRITE"):
        PAGE.write_text(today)
    assert page == today or os.environ.get("SATURNMQ_REWRITE"), "make rewrite, and read the diff"


def test_every_command_has_one_answer() -> None:
    """What is not applicable is so in every step, and nothing is both that and different."""
    assert len(commands()) == 96
    for steps in commands().values():
        assert len({bool(step.not_applicable) for step in steps}) == 1
    assert not [step for step in SCRIPT if isinstance(step, Step) and step.differs and step.not_applicable]
