"""An RTSP camera with a test pattern, for user `me` with the password `hush`. Prints the port.

Runs by Debian's own Python, with gir1.2-gst-rtsp-server-1.0.
"""

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINE = (
    "( videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=15/1 "
    "! x264enc tune=zerolatency key-int-max=15 ! rtph264pay name=pay0 )"
)

Gst.init(None)
token = GstRtspServer.RTSPToken()
token.set_string("media.factory.role", "user")
login = GstRtspServer.RTSPAuth()
login.set_supported_methods(2)  # Digest
login.add_digest("me", "hush", token)
permissions = GstRtspServer.RTSPPermissions()
permissions.add_role("user")
for permission in ("media.factory.access", "media.factory.construct"):
    permissions.add_permission_for_role("user", permission, True)

camera = GstRtspServer.RTSPMediaFactory()
camera.set_launch(PIPELINE)
camera.set_shared(True)
camera.set_permissions(permissions)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
server.set_auth(login)
server.get_mount_points().add_factory("/cam", camera)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
