"""The rows of the live screen of a trace, in a stable order."""

from dataclasses import dataclass, field, replace

from rich.console import RenderableType

from memforensics.analysis.site_groups import smoothed, sort_value, stable_order
from memforensics.case.views import GroupKey, SiteGroup, TraceTick, TraceView
from memforensics.report.terminal.trace import Screen, after_key, live_screen


@dataclass(slots=True)
class LiveTable:
    """The rows and figures on the screen. A paused table keeps them; the trace goes on."""

    screen: Screen
    view: TraceView | None = None
    order: list[GroupKey] = field(default_factory=list)
    _rank: dict[GroupKey, float] = field(default_factory=dict)  # smoothed, by the current sort key

    def press(self, key: str) -> None:
        before, self.screen = self.screen, after_key(self.screen, key, len(self.order))
        if self.screen.sort != before.sort and self.view is not None:
            self.order, self._rank = [], {}
            self._sort(self.view)

    def take(self, view: TraceView) -> None:
        if view is not self.view and not (self.screen.paused and self.view is not None):
            self._sort(view)

    @property
    def groups(self) -> list[SiteGroup]:
        known = {group.key: group for group in self.view.groups} if self.view else {}
        return [known[key] for key in self.order]

    def _sort(self, view: TraceView) -> None:
        """The selected row stays selected when it moves. The first row is not selected until it is opened."""
        chosen = self.order[self.screen.at] if self.screen.at < len(self.order) else None
        now = {group.key: sort_value(group, self.screen.sort) for group in view.groups}
        self._rank = smoothed(self._rank, now)
        self.view, self.order = view, stable_order(self.order, {key: self._rank[key] for key in now})
        if chosen in now and (self.screen.at or self.screen.open):
            self.screen = replace(self.screen, at=self.order.index(chosen))

    def drawn(self, tick: TraceTick, title: str, keys: bool, top: int, size: tuple[int, int]) -> RenderableType:
        """`keys`: whether there is a keyboard. `size`: columns and lines."""
        shown = replace(tick, view=self.view or tick.view)
        return live_screen(
            shown, self.groups, self.screen, title=title, keys=keys, top=top, width=size[0], height=size[1]
        )
