"""Ask the server or key service of this container whether it serves; the exit status is 0 if it does.

`TWINLOCK_HEALTH_URL` names it (`http://127.0.0.1:8765/readyz` by default), `TWINLOCK_HEALTH_CA` the authority of its
certificate where it speaks TLS.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request

DEFAULT_URL = "http://127.0.0.1:8765/readyz"
SECONDS_MAX = 4.0


def main() -> int:
    """Ask once."""
    url = os.environ.get("TWINLOCK_HEALTH_URL", DEFAULT_URL)
    if not url.startswith(("http://", "https://")):
        print(f"TWINLOCK_HEALTH_URL {url!r} is no address", file=sys.stderr)
        return 1
    authority = os.environ.get("TWINLOCK_HEALTH_CA")
    tls = ssl.create_default_context(cafile=authority) if url.startswith("https://") else None
    # No proxy stands between a container and itself.
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=SECONDS_MAX) as answer:
            return 0 if answer.status == 200 else 1
    except (OSError, urllib.error.URLError) as exc:
        print(f"{url}: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
