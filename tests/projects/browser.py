"""The browser of the tests: a program that runs in the container, with a client certificate, cookies, forms and files."""

from __future__ import annotations

# argv: a JSON object {name, certificate, cookies, path, method, headers, fields?, files?, body?}; prints the answer and the
# cookies. Bodies are Latin-1, so that pictures survive.
PROGRAM = r"""
import base64, http.client, json, os, re, socket, ssl, sys

given = json.loads(sys.argv[1])
LIMIT = 30 * int(os.environ["PACE"])
cookies, MARK = given["cookies"], "mark-between-the-parts"

def send(method, path, body=b"", headers={}):
    context = ssl.create_default_context(cafile="/etc/ssl/certs/app.pem")
    if os.path.exists(given["certificate"]):
        context.load_cert_chain(given["certificate"])
    plain = socket.create_connection(("127.0.0.1", 443), timeout=LIMIT)
    connection = http.client.HTTPConnection(given["name"])
    connection.sock = context.wrap_socket(plain, server_hostname=given["name"])
    own = {"Cookie": "; ".join("%s=%s" % item for item in cookies.items()), "Accept-Language": "en"}
    if method not in ("GET", "HEAD", "OPTIONS"):
        own |= {"Origin": "https://" + given["name"], "Referer": "https://" + given["name"] + path}
    connection.request(method, path, body, {**own, **headers})
    answer = connection.getresponse()
    text = answer.read().decode("latin-1")
    for line in answer.headers.get_all("Set-Cookie", []):
        key, value = line.split(";")[0].split("=", 1)
        cookies[key] = value
    return answer.status, answer.getheaders(), text

def multipart(fields, files):
    parts = []
    for key, value in fields.items():
        parts.append(b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
                     % (MARK.encode(), key.encode(), value.encode()))
    for key, (file, content) in files.items():
        head = b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: image/png\r\n\r\n'
        parts.append(head % (MARK.encode(), key.encode(), file.encode()) + base64.b64decode(content) + b"\r\n")
    return b"".join(parts) + b"--%s--\r\n" % MARK.encode()

if "fields" in given:
    status, headers, text = send("GET", given["path"])
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', text)
    if token:
        fields = {"csrfmiddlewaretoken": token[1], **given["fields"]}
        kind = {"Content-Type": "multipart/form-data; boundary=" + MARK}
        status, headers, text = send("POST", given["path"], multipart(fields, given["files"]), kind)
else:
    status, headers, text = send(given["method"] or "GET", given["path"], given.get("body", "").encode(), given["headers"])
print(json.dumps({"status": status, "headers": headers, "body": text, "cookies": cookies}))
"""
