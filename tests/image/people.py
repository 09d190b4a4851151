"""Users of the application: they log in, upload files and administer, with forms, cookies and one-time codes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from testinfra.host import Host

# Runs on the clone as root. Creates accounts and performs the steps of each; prints the responses.
PLAYER = r"""
import base64, hmac, http.client, json, os, re, socket, ssl, subprocess, sys, time, urllib.parse

server, stories = json.loads(sys.argv[1])
PASSWORD = "correct horse battery staple"
LIMIT = 20 * int(os.environ["PACE"])

def connect(direct):
    if direct:
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(LIMIT)
        plain.connect("/run/gunicorn.sock")
        return plain
    context = ssl.create_default_context(cafile="/etc/ssl/certs/app.pem")
    return context.wrap_socket(socket.create_connection(("127.0.0.1", 443), timeout=LIMIT), server_hostname=server)

def code_of(otpauth):
    secret = base64.b32decode(urllib.parse.parse_qs(urllib.parse.urlsplit(otpauth).query)["secret"][0])
    mac = hmac.digest(secret, (int(time.time()) // 30).to_bytes(8, "big"), "sha1")
    start = mac[-1] & 15
    return "%06d" % ((int.from_bytes(mac[start:start + 4], "big") & 0x7FFFFFFF) % 1000000)

class Browser:
    def __init__(self, direct):
        self.direct, self.cookies, self.token = direct, {}, ""

    def send(self, method, path, body=b"", kind=""):
        connection = http.client.HTTPConnection(server)
        connection.sock = connect(self.direct)
        headers = {"Origin": "https://" + server} if method == "POST" else {}
        headers["Cookie"] = "; ".join("%s=%s" % item for item in self.cookies.items())
        if kind:
            headers["Content-Type"] = kind
        if self.direct:
            headers["X-Forwarded-Proto"] = "https"
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
        for line in response.headers.get_all("Set-Cookie", []):
            name, value = line.split(";")[0].split("=", 1)
            self.cookies[name] = value
        found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', text)
        self.token = found.group(1) if found else self.token
        return {"status": response.status, "headers": response.getheaders(), "body": text}

    def form(self, path, **fields):
        self.send("GET", path)
        body = urllib.parse.urlencode({"csrfmiddlewaretoken": self.token, **fields}).encode()
        return self.send("POST", path, body, "application/x-www-form-urlencoded")

    def upload(self, name, content):
        mark = "mark-between-the-parts"
        head = '--%s\r\nContent-Disposition: form-data; name="%s"'
        parts = [(head % (mark, "csrfmiddlewaretoken") + "\r\n\r\n" + self.token + "\r\n").encode()]
        parts.append((head % (mark, "file") + '; filename="%s"\r\n\r\n' % name).encode() + content)
        parts.append(("\r\n--%s--\r\n" % mark).encode())
        return self.send("POST", "/upload", b"".join(parts), "multipart/form-data; boundary=" + mark)

def play(name, story):
    words = ["golden-app", "--json", "account", *(["--administrator"] if story["administrator"] else []), name]
    made = json.loads(subprocess.run(words, input=PASSWORD + "\n", capture_output=True, text=True, check=True).stdout)
    browser = Browser(story["direct"])
    answers = []
    for verb, *given in story["steps"]:
        if verb == "get":
            answers.append(browser.send("GET", given[0]))
        elif verb == "password alone":
            answers.append(browser.form(given[0], username=name, password=PASSWORD))
        elif verb == "login":
            answers.append(browser.form(given[0], username=name, password=PASSWORD, token=code_of(made["otpauth"])))
        elif verb == "upload":
            answers.append(browser.upload(given[0], base64.b64decode(given[1])))
        elif verb == "large upload":
            answers.append(browser.upload(given[0], base64.b64decode(given[1]) + bytes(given[2])))
        elif verb == "get upload":
            found = re.findall(r'href="(/media/[^"]+)"', answers[given[0]]["body"])
            answers.append(browser.send("GET", found[0]) | {"path": found[0]})
        elif verb == "hammer":
            answers.append({"statuses": [browser.send("POST", given[0])["status"] for _ in range(given[1])]})
        else:
            raise ValueError(verb)
    return answers

print(json.dumps({name: play(name, story) for name, story in stories.items()}))
"""


def story(*steps: Sequence[object], administrator: bool = False, direct: bool = False) -> dict[str, object]:
    """Return the steps of one person; ``direct``: on the application's socket, without the web server.

    Steps: ("get", path), ("password alone", path), ("login", path), ("upload", name, content in base64), ("large upload",
    name, content, bytes to add), ("get upload", number of the answer that shows it), ("hammer", path, times): empty forms.
    """
    return {"administrator": administrator, "direct": direct, "steps": steps}


def play(host: Host, server_name: str, stories: Mapping[str, Mapping[str, object]]) -> dict[str, list[dict[str, Any]]]:
    """Perform the stories, each with an account of its name; return the responses to the steps."""
    output = host.check_output("python3 -c %s %s", PLAYER, json.dumps([server_name, stories]))
    found: dict[str, list[dict[str, Any]]] = json.loads(output.splitlines()[-1])
    return found
