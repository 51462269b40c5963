"""A camera on the network by RTSP, decoded by ffmpeg in a process of its own.

ffmpeg writes raw pictures with their size (PPM), which costs less than to encode and decode JPEGs. The address with the
password reaches ffmpeg through a pipe, in a list of files, since every user of the board may read command lines.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

from msgspec import Meta

from edged.api import ConfigError, Source, SourceConfig, SourceInfo
from edged.core.framing import Faults
from edged.core.picture_stream import PpmSplitter
from edged.core.pictures import Pixels
from edged.core.types import MAX_URL
from edged.sources.newest_picture import PictureRate, Timeout
from edged.sources.program_output import ProgramPictures, ppm_picture
from edged.system.credentials import read_secret
from edged.system.program import Program
from edged.system.urls import FetchError, parse_url, place

_Text = Annotated[str, Meta(max_length=1000)]


class RtspSource(SourceConfig, frozen=True, kw_only=True):
    """Options of [sources.X] with kind = "rtsp": a camera on the network by RTSP, decoded by the program ffmpeg.

    ffmpeg 5.1 or later must be installed; ffmpeg is started again when the camera, the network or ffmpeg fails. RTSP is
    not encrypted: prefer a camera that asks for the password by the scheme Digest.

    Keys:
        url: Address of the stream, as rtsp://camera.local:554/stream, without user and password.
        rate (pictures/s): Pictures to take, at most. Default: all pictures.
        size (pixels): Width and height to which ffmpeg scales all pictures. Default: the camera's.
        key_frames: Decode key frames only, one in every second or few, at a fraction of the processor time.
        transport: Transport of the pictures: "tcp", or "udp" for the fewest delays in a network without losses.
        username: User name at the camera.
        password_file: File with the password in its first line, read again at each start. A relative name is a
            credential of the service.
        timeout (s): Time without a picture after which ffmpeg is killed and started again.
    """

    url: Annotated[str, Meta(min_length=1, max_length=MAX_URL)]
    rate: PictureRate | None = None
    size: tuple[Pixels, Pixels] | None = None
    key_frames: bool = False
    transport: Literal["tcp", "udp"] = "tcp"
    username: _Text = ""
    password_file: _Text = ""
    timeout: Timeout = 20.0

    def describe(self) -> SourceInfo:
        """Describe a source of pictures."""
        try:
            parts = parse_url(self.url, ("rtsp",))
        except FetchError as error:
            raise ConfigError(error.message, hint="write the url as rtsp://camera.local:554/stream") from error
        if parts.username is not None:
            raise ConfigError(
                "the url holds a user or a password", hint="set username, and the password in a password_file"
            )
        if bool(self.username) != bool(self.password_file):
            raise ConfigError("username and password_file go together", hint="give both or neither")
        return SourceInfo(shape=(), pictures=True)

    def open(self) -> Source:
        """Start ffmpeg."""
        password = read_secret("password_file", self.password_file) if self.password_file else ""
        url = self._url(password)
        program = Program(
            self.words(),
            remedy="install ffmpeg: sudo apt install ffmpeg",
            given=f"ffconcat version 1.0\nfile '{url}'\n{self._options()}".encode(),
            secrets=(url, password, quote(password, safe="")),
        )
        return ProgramPictures(program, PpmSplitter(Faults()), ppm_picture, rate=self.rate, limit=self.timeout)

    def words(self) -> tuple[str, ...]:
        """Return ffmpeg's command line."""
        filters = []
        if self.rate:  # a little less than the period, since pictures come early now and then
            filters.append(f"select='isnan(prev_selected_t)+gte(t-prev_selected_t,{0.9 / self.rate:.6f})'")
        if self.size:
            filters.append(f"scale={self.size[0]}:{self.size[1]}")
        return (
            *("ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-flags", "low_delay"),
            *(("-skip_frame", "nokey") if self.key_frames else ()),
            *("-protocol_whitelist", "pipe,rtsp,rtp,udp,tcp", "-f", "concat", "-safe", "0", "-i", "pipe:0"),
            *("-map", "0:v:0", "-fps_mode", "passthrough"),
            *(("-vf", ",".join(filters)) if filters else ()),
            *("-c:v", "ppm", "-f", "image2pipe", "pipe:1"),
        )

    def _options(self) -> str:
        return f"option rtsp_transport {self.transport}\noption allowed_media_types video\n"

    def _url(self, password: str) -> str:
        """Return the address with user and password, in the quotes of a list for ffmpeg."""
        parts = parse_url(self.url, ("rtsp",))
        login = f"{quote(self.username, safe='')}:{quote(password, safe='')}@" if password else ""
        return parts._replace(netloc=f"{login}{place(parts)}").geturl().replace("'", "%27")
