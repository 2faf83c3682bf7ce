"""What the demo shows: headings, results of checks, a live bar; calm in a terminal, plain lines without one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

PLAIN_WIDTH = 100


class Screen:
    """The terminal, and the count of checks that failed."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=PLAIN_WIDTH)
        self.failed = 0
        self._scene = 0

    def open(self) -> None:
        """Say what this is."""
        self.console.print()
        self.console.print("[bold]Twinlock[/]  live sync that takes two separate keys to open anything", style="cyan")
        self.console.print("[dim]Real processes, real sockets, real files; nothing is simulated.[/]")

    def scene(self, title: str, what: str) -> None:
        """Begin a part of the story."""
        self._scene += 1
        self.console.print(f"\n[bold]{self._scene}  {escape(title)}[/]")
        self._line(f"   [dim]{escape(what)}[/]")

    def note(self, text: str) -> None:
        """Say something by the way."""
        self._line(f"   {escape(text)}")

    def check(self, is_good: bool, text: str, otherwise: str = "") -> None:
        """Show a check's result; one that failed decides the exit status."""
        if is_good:
            self._line(f"   [green]✓[/] {escape(text)}")
            return
        self.failed += 1
        self._line(f"   [bold red]✗ {escape(text)}[/] {escape(otherwise)}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a few facts side by side."""
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(Padding(table, (0, 0, 0, 3)))

    def bar(self) -> Progress:
        """Return a live bar with a place for the latency."""
        return Progress(
            TextColumn("   {task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[latency]}", style="cyan"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def end(self, seconds: float, lines: Sequence[str]) -> None:
        """Sum up and say how to go on."""
        self.console.print()
        if self.failed:
            self.console.print(f"[bold red]{self.failed} checks failed[/] after {seconds:.0f} s")
        else:
            self.console.print(f"[bold green]Every check passed[/] in {seconds:.0f} s")
        if lines:
            self.console.print("\n[bold]How to go on[/]")
        for line in lines:
            self._line(f"   {escape(line)}")

    def _line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)
