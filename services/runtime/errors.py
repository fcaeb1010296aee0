"""Errors of the runtime package.

RuntimeFault
├── SettingsError            a setting that is unknown or has a bad value: names the variable and the cure
└── RpcFailure               (in `status`) a call that ends in one row of the status table

`eventlog.OutboxFullError`, `eventlog.PoisonRecordError` and `eventlog.EventLogUnavailableError` belong to the event log's contract.
"""


class RuntimeFault(Exception):
    """Root of what the runtime package raises on bad input."""


class SettingsError(RuntimeFault):
    pass
