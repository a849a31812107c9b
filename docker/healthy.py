"""Exit 0 when every URL is answered with 200, else 1 and say which is not: a health check.

    python healthy.py http://127.0.0.1:5000/health

It needs nothing but Python, since the images have neither curl nor wget.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

_SECONDS = 4.0


def ill(urls: list[str]) -> list[str]:
    """What is wrong, one line for each URL that is not answered with 200 within four seconds."""
    # A proxy of the environment is for the world outside, not for this container.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    problems = []
    for url in urls:
        try:
            with opener.open(url, timeout=_SECONDS) as answer:
                if answer.status != 200:
                    problems.append(f"{url}: {answer.status}")
        except (OSError, urllib.error.URLError) as error:
            problems.append(f"{url}: {error}")
    return problems


if __name__ == "__main__":
    wrong = ill(sys.argv[1:])
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    sys.exit(1 if wrong or not sys.argv[1:] else 0)
