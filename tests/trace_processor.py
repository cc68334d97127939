"""A file in Perfetto's trace processor, as its UI and its SQL see it."""

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory
from perfetto.trace_processor.rpc import TraceProcessorRpc

DRIVER = Path(__file__).with_suffix(".js")


class TraceProcessor:
    """`folder` has its WebAssembly build. Perfetto's Python client talks to it through a pipe."""

    def __init__(self, folder: Path, trace: bytes) -> None:
        self._popen = subprocess.Popen(["node", DRIVER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._protos = ProtoFactory(PlatformDelegate())
        self._rpc = TraceProcessorRpc(self, self._protos)
        method = self._protos.TraceProcessorRpc
        stream = self._protos.TraceProcessorRpcStream()
        stream.msg.add(request=method.TPM_APPEND_TRACE_DATA, append_trace_data=trace)
        stream.msg.add(request=method.TPM_FINALIZE_TRACE_DATA)
        self.send(stream.SerializeToString())
        for _ in stream.msg:
            reply = method.FromString(self._rpc._read_payload())
            assert not reply.append_result.error, reply.append_result.error
            assert not reply.finalize_data_result.error, reply.finalize_data_result.error

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows. AssertionError if the SQL fails."""
        result = self._rpc.execute_query(sql)
        assert not result.error, result.error
        return [tuple(vars(row).values()) for row in QueryResultIterator(result.column_names, result.batch)]

    def send(self, data: bytes) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(data)
        self._popen.stdin.flush()

    def read(self, size: int) -> bytes:
        assert self._popen.stdout is not None
        data = self._popen.stdout.read(size)
        if len(data) < size:
            raise ConnectionError("the trace processor ended")
        return data

    def close(self) -> None:
        with self._popen:
            self._popen.kill()

    def __enter__(self) -> "TraceProcessor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
