"""The head's jobs, kept in memory and written through to home/.sky/jobs.db.

A new job is only accepted once it is on disk. A later change holds in memory at once; if the disk is full it is written
as soon as there is space again, so that a full disk never changes what a job's state is.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Optional

from skyloom_agent.model import JobRecord
from skyloom_common.core import wire
from skyloom_common.core.errors import JobDoesNotExist, Unavailable

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL
)
"""


class JobStore:
    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(str(path), isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA cache_size=-512")
        self._db.execute(SCHEMA)
        self._records: dict[int, JobRecord] = {}
        self._keys: dict[str, int] = {}
        self._active: dict[int, JobRecord] = {}
        self._unwritten: set[int] = set()
        self.problem = ""
        for job_id, key, body in self._db.execute("SELECT id, key, body FROM jobs ORDER BY id"):
            self._remember(wire.loads(JobRecord, body))
            self._keys[key] = job_id

    def all(self) -> list[JobRecord]:
        return list(self._records.values())

    def active(self) -> list[JobRecord]:
        """The jobs that are not final, in order of arrival."""
        return list(self._active.values())

    def newest_active_is(self, stage: str) -> bool:
        """Whether the job that came last, of those that are not final, is at this stage."""
        newest = next(reversed(self._active.values()), None)
        return newest is not None and newest.stage == stage

    @property
    def active_count(self) -> int:
        return len(self._active)

    def _remember(self, record: JobRecord) -> None:
        job_id = record.job.job_id
        self._records[job_id] = record
        if record.job.status.is_final:
            self._active.pop(job_id, None)
        else:
            self._active[job_id] = record

    def get(self, job_id: int) -> JobRecord:
        try:
            return self._records[job_id]
        except KeyError:
            raise JobDoesNotExist(f"job {job_id} does not exist on this cluster") from None

    def by_key(self, key: str) -> Optional[JobRecord]:
        job_id = self._keys.get(key)
        return None if job_id is None else self._records[job_id]

    def next_id(self) -> int:
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
        return (row[0] if row else 0) + 1

    def insert(self, record: JobRecord) -> None:
        """Raises Unavailable when it cannot be kept; then there is no such job."""
        try:
            self._db.execute(
                "INSERT INTO jobs (id, key, body) VALUES (?, ?, ?)",
                (record.job.job_id, record.submit.key, wire.dumps(record).decode()),
            )
        except sqlite3.OperationalError as error:
            self.problem = f"the job database cannot be written: {error}"
            raise Unavailable(f"the job was not accepted: {self.problem}") from error
        self._remember(record)
        self._keys[record.submit.key] = record.job.job_id

    def update(self, record: JobRecord, soon: bool = False) -> None:
        """`soon`: the next flush writes it, together with others."""
        self._remember(record)
        self._unwritten.add(record.job.job_id)
        if not soon:
            self.flush()

    def flush(self) -> bool:
        """Writes what is not on disk yet; False when it still cannot."""
        if not self._unwritten:
            return True
        rows = [(wire.dumps(self._records[job_id]).decode(), job_id) for job_id in self._unwritten]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("UPDATE jobs SET body = ? WHERE id = ?", rows)
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self.problem = f"the job database cannot be written: {error}"
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            return False
        self._unwritten.clear()
        self.problem = ""
        return True

    def written(self, job_id: int) -> bool:
        return job_id not in self._unwritten

    def close(self) -> None:
        self.flush()
        self._db.close()
