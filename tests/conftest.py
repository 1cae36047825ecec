"""Tests hear Ctrl-C however they were started: a shell's background job ignores it, and so would all that it starts."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
