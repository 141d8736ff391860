"""The health check: fails where the service in this container doesn't answer, or one of its stores doesn't."""

from http.client import HTTPConnection

connection = HTTPConnection("127.0.0.1", 8000, timeout=25)
connection.request("GET", "/health")
raise SystemExit(connection.getresponse().status != 200)
