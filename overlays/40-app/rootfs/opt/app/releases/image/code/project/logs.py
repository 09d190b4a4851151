"""The ID of the request that a log line belongs to.

Every record has it as ``rid``; ``extra={"fields": {...}}`` adds to a record. gunicorn.conf.py writes both as JSON.
"""

import logging
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="-")


def mark_records() -> None:
    """Give every log record of this process the ID of the request in which it was created."""
    make = logging.getLogRecordFactory()

    def make_marked(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.rid = request_id.get()
        return record

    logging.setLogRecordFactory(make_marked)
