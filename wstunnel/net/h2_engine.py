"""h2, as this side of a connection: what is taken from it, what is left to others, and what it must not remember."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, H2Connection
from h2.settings import SettingCodes
from h2.stream import H2Stream
from hyperframe.frame import SettingsFrame

from wstunnel.limits import Limits

__all__ = ["Engine", "begun", "settings_frame"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Engine(H2Connection):
    """h2 as this side of a connection.

    It does not count the bodies of requests, where a wrong length would end the connection, and it does not remember
    how 65,536 streams ended, which is 8 MiB of a client's making.
    """

    def __init__(self, limits: Limits) -> None:
        self.MAX_CLOSED_STREAMS = limits.h2.closed_streams
        super().__init__(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_inbound_headers=False,  # by proto/http2.py, like those that we send
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        stream._initialize_content_length = _leave_length  # type: ignore[method-assign]
        return stream


def begun(limits: Limits) -> Engine:
    """An engine that has begun; its own settings are sent by us, with those that it need not know."""
    engine = Engine(limits)
    del engine.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS]  # too many are refused here, and nobody else harmed
    engine.local_settings.initial_window_size = limits.h2.window_bytes
    engine.local_settings.acknowledge()
    engine.initiate_connection()
    engine.clear_outbound_data_buffer()
    engine.decoder.max_header_list_size = limits.h2.max_header_list_bytes
    engine.receive_data(_PREFACE)
    return engine


def settings_frame(limits: Limits, max_streams: int) -> bytes:
    """The first frame of a server."""
    frame = SettingsFrame(
        0,
        settings={
            SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
            SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
            SettingCodes.INITIAL_WINDOW_SIZE: limits.h2.window_bytes,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.h2.max_header_list_bytes,
        },
    )
    return frame.serialize()


def _leave_length(headers: object) -> None:
    """An `H2Exchange` knows it."""
