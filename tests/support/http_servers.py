"""A web server for tests."""

from http.server import ThreadingHTTPServer


class WebServer(ThreadingHTTPServer):
    """One that takes as many connections at once as a reader opens.

    Where the queue is full, as with the default of 5, the kernel drops the request for a connection, and the client
    repeats it after 1, 3, 7 seconds.
    """

    request_queue_size = 128
    daemon_threads = True
