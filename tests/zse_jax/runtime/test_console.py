"""Tables on terminals, in files and in pipes."""

from rich.table import Table

from zse_jax.runtime.console import show


def test_a_table_in_a_file_or_a_pipe_is_not_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    names = [f"column {number} of many" for number in range(20)]
    table = Table(*names, title="All columns", caption="caption")
    table.add_row(*names)
    show(table)
    lines = capsys.readouterr().out.splitlines()
    assert all(name in lines[2] and name in lines[4] for name in names)
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)
    assert max(map(len, lines)) < 600
