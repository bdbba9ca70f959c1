# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""Request heads as nearly every client sends them, out of one read and in one pass.

What is taken here, `HeadReader` (proto/http1.py) takes too, and reads the same out of it. Everything else is left to
it, good or bad: it alone refuses, so that the rules and their texts have one source.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject, PyObject_GenericSetAttr, PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeLatin1
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

from wstunnel.proto.request import Request

__all__ = ["field_values", "plain_key", "read_plain_head"]


cdef extern from "Python.h":
    object PyType_GenericAlloc(PyTypeObject* type, Py_ssize_t items)  # cpython.type has it for any object
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* length) except NULL
    void PyUnicode_InternInPlace(PyObject** text)


cdef enum:
    PLAIN_FIELDS = 64  # a head with more of them goes the long way
    KNOWN_SLOTS = 128  # a power of two, at least twice as many as there are usual names

cdef enum:  # what a byte may be part of
    IN_PATH = 1  # as it stands, undecoded
    IN_QUERY = 2
    IN_VALUE = 4
    IN_HOST = 8
    IN_ADDRESS = 16  # between brackets
    IS_BLANK = 32

cdef enum Role:  # why a field is looked at here
    NONE
    HOST
    UPGRADE
    CONNECTION
    BODY

cdef struct Known:
    const uint8_t* text  # lower case; lent by `name`
    Py_ssize_t length
    PyObject* name  # this table's own reference, never given up; NULL: a free place
    Role role

cdef struct Field:
    const Known* known  # NULL: no usual name
    Py_ssize_t name
    Py_ssize_t name_length
    Py_ssize_t value
    Py_ssize_t value_length

cdef struct Head:  # positions in the bytes that were read
    Py_ssize_t path_end
    Py_ssize_t target_end
    Py_ssize_t end
    Py_ssize_t count
    Py_ssize_t host
    bint wants_websocket
    Field fields[PLAIN_FIELDS]


# Written once, at import.
cdef uint8_t _kinds[256]
cdef uint8_t _lower[256]  # a byte of a token in lower case; 0: no token has it
cdef Known _known[KNOWN_SLOTS]

cdef dict _ROLES = {
    "host": HOST, "upgrade": UPGRADE, "connection": CONNECTION, "content-length": BODY, "transfer-encoding": BODY
}
cdef tuple _USUAL = (
    *_ROLES,
    "accept", "accept-encoding", "accept-language", "authorization", "cache-control", "cookie", "dnt", "forwarded",
    "if-modified-since", "if-none-match", "origin", "pragma", "priority", "range", "referer", "sec-ch-ua",
    "sec-ch-ua-mobile", "sec-ch-ua-platform", "sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site", "sec-fetch-user",
    "sec-gpc", "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-protocol", "sec-websocket-version",
    "te", "upgrade-insecure-requests", "user-agent", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port",
    "x-forwarded-proto", "x-forwarded-server", "x-real-ip", "x-request-id",
)


cdef inline uint32_t _hashed(uint32_t so_far, uint8_t byte) noexcept nogil:
    return so_far * 31 + byte


cdef int _fill_tables() except -1:
    cdef int byte
    cdef uint32_t place
    cdef bytes raw
    for byte in range(256):
        if 0x21 <= byte <= 0x7E and byte != c"#":
            _kinds[byte] |= IN_QUERY
            if byte != c"%" and byte != c"?":
                _kinds[byte] |= IN_PATH
        if byte == c"\t" or (0x20 <= byte and byte != 0x7F):
            _kinds[byte] |= IN_VALUE
        if chr(byte) in "0123456789abcdefABCDEF:.":
            _kinds[byte] |= IN_ADDRESS
        if byte == c" " or byte == c"\t":
            _kinds[byte] |= IS_BLANK
        if byte < 0x80 and (chr(byte).isalnum() or chr(byte) in "!#$%&'*+-.^_`|~"):
            _lower[byte] = ord(chr(byte).lower())
        if byte < 0x80 and (chr(byte).isalnum() or chr(byte) in "._~%-"):
            _kinds[byte] |= IN_HOST
    for name in _USUAL:
        raw = name.encode("ascii")
        place = 0
        for byte in raw:
            place = _hashed(place, <uint8_t>byte)
        while _known[place % KNOWN_SLOTS].name != NULL:
            place += 1
        _keep(&_known[place % KNOWN_SLOTS], name, _ROLES.get(name, NONE))
    return 0


cdef int _keep(Known* place, str name, Role role) except -1:
    Py_INCREF(name)
    place.name = <PyObject*>name
    PyUnicode_InternInPlace(&place.name)
    place.text = <const uint8_t*>PyUnicode_AsUTF8AndSize(<object>place.name, &place.length)
    place.role = role
    return 0


_fill_tables()


def read_plain_head(data, Py_ssize_t nbytes, limits, str peer not None, str local not None, str scheme not None,
                    str subject not None):
    """The request at the front of the first `nbytes` of `data`, and what follows its head; None: ask a HeadReader.

    in      data    any buffer; nothing of it is kept
            limits  HeadLimits; peer, local, scheme and subject: as in Request
    out     a GET of a path that is written without escapes, dot segments and empty segments, with strict fields, one
            good Host and no word of a body
    bound   PLAIN_FIELDS on the stack; one pass
    source  RFC 9112 §2-§5, as HeadReader
    """
    cdef Py_buffer view
    cdef Head head
    cdef const uint8_t* raw
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if not 0 <= nbytes <= view.len:
            raise ValueError(f"{nbytes} bytes of {view.len}")
        raw = <const uint8_t*>view.buf  # lent by `data` until the release below
        if not _scan(raw, min(nbytes, <Py_ssize_t>limits.max_head_bytes), limits.max_fields, &head):
            return None
        request = _made(raw, &head, peer, local, scheme, subject)
        return request, PyBytes_FromStringAndSize(<const char*>raw + head.end, nbytes - head.end)
    finally:
        PyBuffer_Release(&view)


def field_values(tuple headers not None, str name not None):
    """Every value of a field, in order, as `Request.all` says: for those who ask on every handshake."""
    cdef list values = []
    cdef str key
    cdef Py_ssize_t length = len(name)
    for pair in headers:
        key = (<tuple?>pair)[0]
        # identity first: usual names are interned; then length, which is cheaper than a comparison
        if key is name or (len(key) == length and key == name):
            values.append((<tuple>pair)[1])
    return values


def plain_key(tuple headers not None):
    """The Sec-WebSocket-Key of a handshake as nearly every client makes it: one version, 13, one key of 16 bytes, no
    subprotocol. None: look at it more closely."""
    cdef str name, value = None
    cdef bint is_13 = False
    cdef Py_ssize_t length, at
    cdef const char* text
    for pair in headers:
        name = (<tuple?>pair)[0]
        length = len(name)
        if length == 21 and name == "sec-websocket-version":
            if is_13 or (<tuple>pair)[1] != "13":
                return None
            is_13 = True
        elif length == 17 and name == "sec-websocket-key":
            if value is not None:
                return None
            value = (<tuple>pair)[1]
        elif length == 22 and name == "sec-websocket-protocol":
            return None
    if not is_13 or value is None:
        return None
    text = PyUnicode_AsUTF8AndSize(value, &length)
    if length != 24 or text[22] != c"=" or text[23] != c"=":
        return None
    for at in range(22):
        if not (c"A" <= text[at] <= c"Z" or c"a" <= text[at] <= c"z" or c"0" <= text[at] <= c"9"
                or text[at] == c"+" or text[at] == c"/"):
            return None
    return value


cdef bint _scan(const uint8_t* raw, Py_ssize_t length, Py_ssize_t max_fields, Head* head) noexcept nogil:  # hot
    """Is this a whole plain head? Then `head` says what is where."""
    cdef Py_ssize_t at = 4
    cdef bint has_upgrade = False, has_connection = False
    cdef Field* field
    cdef Role role
    if length < 4 or memcmp(raw, b"GET ", 4) != 0:
        return False
    if at == length or raw[at] != c"/":
        return False
    while at < length and _kinds[raw[at]] & IN_PATH:
        at += 1
        if raw[at - 1] == c"/" and at < length and (raw[at] == c"/" or raw[at] == c"."):
            return False
    head.path_end = at
    if at < length and raw[at] == c"?":
        while at < length and _kinds[raw[at]] & IN_QUERY:
            at += 1
    head.target_end = at
    if length - at < 11 or memcmp(raw + at, b" HTTP/1.1\r\n", 11) != 0:
        return False
    at += 11

    head.count = 0
    head.host = -1
    while length - at >= 2:
        if raw[at] == c"\r":
            if raw[at + 1] != c"\n" or head.host < 0:
                return False
            head.end = at + 2
            head.wants_websocket = has_upgrade and has_connection
            return True
        if head.count == PLAIN_FIELDS or head.count == max_fields:
            return False
        field = &head.fields[head.count]
        at = _scan_field(raw, at, length, field)
        if at < 0:
            return False
        role = NONE if field.known == NULL else field.known.role
        if role == HOST:
            if head.host >= 0 or not _is_authority(raw + field.value, field.value_length):
                return False
            head.host = head.count
        elif role == UPGRADE:
            has_upgrade = has_upgrade or _lists(raw + field.value, field.value_length, b"websocket", 9)
        elif role == CONNECTION:
            has_connection = has_connection or _lists(raw + field.value, field.value_length, b"upgrade", 7)
        elif role == BODY:
            return False
        head.count += 1
    return False


cdef inline Py_ssize_t _scan_field(
    const uint8_t* raw, Py_ssize_t at, Py_ssize_t length, Field* field
) noexcept nogil:  # hot
    """Where the next line begins; -1: this is no whole field line."""
    cdef uint32_t mixed = 0
    cdef Py_ssize_t end
    field.name = at
    while at < length and _lower[raw[at]]:
        mixed = _hashed(mixed, _lower[raw[at]])
        at += 1
    field.name_length = at - field.name
    if not field.name_length or at == length or raw[at] != c":":
        return -1
    field.known = _found(raw + field.name, field.name_length, mixed)
    at += 1
    while at < length and _kinds[raw[at]] & IS_BLANK:
        at += 1
    field.value = at
    while at < length and _kinds[raw[at]] & IN_VALUE:
        at += 1
    if length - at < 2 or raw[at] != c"\r" or raw[at + 1] != c"\n":
        return -1
    end = at
    while end > field.value and _kinds[raw[end - 1]] & IS_BLANK:
        end -= 1
    field.value_length = end - field.value
    return at + 2


cdef inline const Known* _found(const uint8_t* name, Py_ssize_t length, uint32_t mixed) noexcept nogil:  # hot
    cdef const Known* known = &_known[mixed % KNOWN_SLOTS]
    while known.name != NULL:
        if known.length == length and _is_same(name, known.text, length):
            return known
        mixed += 1
        known = &_known[mixed % KNOWN_SLOTS]
    return NULL


cdef inline bint _is_same(const uint8_t* text, const uint8_t* lowered, Py_ssize_t length) noexcept nogil:  # hot
    cdef Py_ssize_t at
    for at in range(length):
        if _lower[text[at]] != lowered[at]:
            return False
    return True


cdef bint _lists(const uint8_t* value, Py_ssize_t length, const char* token, Py_ssize_t size) noexcept nogil:
    """Is `token`, given in lower case, a member of a comma-separated value?"""
    cdef Py_ssize_t at = 0, begin, end
    while at < length:
        begin = at
        while at < length and value[at] != c",":
            at += 1
        end = at
        while begin < end and _kinds[value[begin]] & IS_BLANK:
            begin += 1
        while begin < end and _kinds[value[end - 1]] & IS_BLANK:
            end -= 1
        if end - begin == size and _is_same(value + begin, <const uint8_t*>token, size):
            return True
        at += 1
    return False


cdef bint _is_authority(const uint8_t* text, Py_ssize_t length) noexcept nogil:
    """A name or a bracketed address, and an optional port."""
    cdef Py_ssize_t at = 0
    if length and text[0] == c"[":
        at = 1
        while at < length and _kinds[text[at]] & IN_ADDRESS:
            at += 1
        if at == 1 or at == length or text[at] != c"]":
            return False
        at += 1
    else:
        while at < length and _kinds[text[at]] & IN_HOST:
            at += 1
        if not at:
            return False
    if at == length:
        return True
    if text[at] != c":" or length - at > 6:  # a port has five digits at most
        return False
    at += 1
    while at < length and c"0" <= text[at] <= c"9":
        at += 1
    return at == length


cdef object _made(const uint8_t* raw, const Head* head, str peer, str local, str scheme, str subject):
    """The Request. It is frozen for Python; filling it from here spares the ten calls that its `__init__` makes."""
    cdef Py_ssize_t at
    cdef tuple headers = PyTuple_New(head.count), pair
    cdef object name
    for at in range(head.count):
        name = _name(raw, &head.fields[at])
        pair = (name, _text(raw + head.fields[at].value, head.fields[at].value_length))
        Py_INCREF(pair)
        PyTuple_SET_ITEM(headers, at, pair)
    cdef str target = _text(raw + 4, head.target_end - 4)
    cdef bint has_query = head.path_end < head.target_end
    request = PyType_GenericAlloc(<PyTypeObject*>Request, 0)
    PyObject_GenericSetAttr(request, "method", "GET")
    PyObject_GenericSetAttr(request, "target", target)
    PyObject_GenericSetAttr(request, "path", _text(raw + 4, head.path_end - 4) if has_query else target)
    PyObject_GenericSetAttr(
        request, "query", _text(raw + head.path_end + 1, head.target_end - head.path_end - 1) if has_query else ""
    )
    PyObject_GenericSetAttr(request, "host", headers[head.host][1])
    PyObject_GenericSetAttr(request, "headers", headers)
    PyObject_GenericSetAttr(request, "peer", peer)
    PyObject_GenericSetAttr(request, "local", local)
    PyObject_GenericSetAttr(request, "scheme", scheme)
    PyObject_GenericSetAttr(request, "wants_websocket", head.wants_websocket)
    PyObject_GenericSetAttr(request, "body_bytes", 0)
    PyObject_GenericSetAttr(request, "version", "HTTP/1.1")
    PyObject_GenericSetAttr(request, "client_subject", subject)
    return request


cdef inline object _name(const uint8_t* raw, const Field* field):
    if field.known != NULL:
        return <object>field.known.name
    return _text(raw + field.name, field.name_length).lower()


cdef inline str _text(const uint8_t* raw, Py_ssize_t length):
    return PyUnicode_DecodeLatin1(<const char*>raw, length, NULL)
