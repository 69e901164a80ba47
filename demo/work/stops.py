"""What stops the work of a visitor: a button, or leaving the page."""

from __future__ import annotations

import threading


class Stops:
    """One event for each visitor and kind of work, set when that is to stop."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], threading.Event] = {}
        self._lock = threading.Lock()

    def begin(self, session: str, work: str) -> threading.Event:
        """An event for new work; what the visitor had begun of this kind stops."""
        event = threading.Event()
        self.add(session, work, event)
        return event

    def add(self, session: str, work: str, event: threading.Event) -> None:
        """Take up the event of new work; what the visitor had begun of this kind stops."""
        with self._lock:
            earlier = self._events.get((session, work))
            self._events[session, work] = event
        if earlier is not None:
            earlier.set()

    def stop(self, session: str, work: str) -> None:
        """Stop a visitor's work of a kind; without effect if there is none."""
        with self._lock:
            event = self._events.get((session, work))
        if event is not None:
            event.set()

    def end(self, session: str, work: str, event: threading.Event) -> None:
        """Forget work that has ended."""
        with self._lock:
            if self._events.get((session, work)) is event:
                del self._events[session, work]

    def leave(self, session: str) -> None:
        """Stop all of a visitor's work."""
        with self._lock:
            events = [event for (owner, _), event in self._events.items() if owner == session]
        for event in events:
            event.set()

    def close(self) -> None:
        """Stop the work of all."""
        with self._lock:
            events = list(self._events.values())
        for event in events:
            event.set()
