"""A pytest plugin for runs that may be cut short: tells each failure at once, and replaces workers without a device.

After an assertion or a bad address on a CUDA device the process can use it no more, and every later test would fail.
"""

import os
import sys


class InstantFailures:
    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        if not report.failed:
            return
        text = report.longreprtext
        if hasattr(self.config, "workerinput"):  # a worker of pytest-xdist, which starts another in its place
            if "CUDA error" in text or "AcceleratorError" in text:
                sys.__stderr__.write(f"\nlost the device in {report.nodeid}:\n{text[-3000:]}\n")
                sys.__stderr__.flush()
                os._exit(70)
        elif reporter := self.config.pluginmanager.get_plugin("terminalreporter"):
            reporter.write_line(f"\nFAILED {report.nodeid}\n{text[-3000:]}")
            sys.stdout.flush()


def pytest_configure(config):
    config.pluginmanager.register(InstantFailures(config), "instant-failures")
