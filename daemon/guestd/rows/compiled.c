/* Rows to the bytes of PostgreSQL's binary COPY (postgresql.org/docs/current/sql-copy.html, Binary Format).
 *
 * What psycopg's binary dumpers write for the same values, held to that by tests/unit/test_copyrows.py, without a Python
 * object a value. Optional: without it (no compiler where guestd was installed) psycopg writes the rows.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <datetime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Unix time of PostgreSQL's epoch, 2000-01-01, microseconds. */
#define EPOCH_MICROSECONDS INT64_C(946684800000000)

static PyObject *epoch;      /* datetime(2000, 1, 1, tzinfo=UTC) */
static PyObject *bytes_name; /* "bytes", an attribute of UUIDs */

/* Grows; `data` is PyMem's. */
typedef struct {
    char *data;
    size_t size, room;
} Buffer;

/* The key and the time that the rows of one message share: the same objects again and again. */
typedef struct {
    PyObject *key, *moment;
    char key_bytes[16];
    int64_t moment_microseconds;
} Last;

static int reserve(Buffer *out, size_t more) {
    if (out->size + more <= out->room)
        return 0;
    size_t room = (out->size + more) * 2;
    char *data = PyMem_Realloc(out->data, room);
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    out->data = data;
    out->room = room;
    return 0;
}

/* Big-endian, as all of it is on the wire. */
static void put(Buffer *out, uint64_t value, int width) {
    for (int place = width - 1; place >= 0; place--)
        out->data[out->size++] = (char)(value >> 8 * place);
}

static int put_sized(Buffer *out, uint64_t value, int width) {
    if (reserve(out, 4 + (size_t)width) < 0)
        return -1;
    put(out, (uint64_t)width, 4);
    put(out, value, width);
    return 0;
}

static int put_bytes(Buffer *out, const char *data, Py_ssize_t size, int is_jsonb) {
    if (size > INT32_MAX - 1) {
        PyErr_SetString(PyExc_OverflowError, "a value of 2 GiB");
        return -1;
    }
    if (reserve(out, 5 + (size_t)size) < 0)
        return -1;
    put(out, (uint64_t)(size + is_jsonb), 4);
    if (is_jsonb)
        put(out, 1, 1); /* its version */
    memcpy(out->data + out->size, data, (size_t)size);
    out->size += (size_t)size;
    return 0;
}

static int put_integer(Buffer *out, PyObject *value, int width) {
    if (!PyLong_Check(value)) {
        PyErr_Format(PyExc_TypeError, "an integer is required, not %s", Py_TYPE(value)->tp_name);
        return -1;
    }
    long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred())
        return -1;
    if (width == 4 && (number < INT32_MIN || number > INT32_MAX)) {
        PyErr_SetString(PyExc_OverflowError, "not an int4");
        return -1;
    }
    return put_sized(out, (uint64_t)number, width);
}

static int put_float(Buffer *out, PyObject *value) {
    double number = PyFloat_AsDouble(value);
    uint64_t bits;
    if (number == -1.0 && PyErr_Occurred())
        return -1;
    memcpy(&bits, &number, 8);
    return put_sized(out, bits, 8);
}

static int put_text(Buffer *out, PyObject *value) {
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    return text == NULL ? -1 : put_bytes(out, text, size, 0);
}

static int put_binary(Buffer *out, PyObject *value, int is_jsonb) {
    if (!PyBytes_Check(value)) {
        PyErr_Format(PyExc_TypeError, "bytes are required, not %s", Py_TYPE(value)->tp_name);
        return -1;
    }
    return put_bytes(out, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), is_jsonb);
}

static int put_key(Buffer *out, PyObject *value, Last *last) {
    if (value != last->key) {
        PyObject *key = PyObject_GetAttr(value, bytes_name);
        if (key == NULL)
            return -1;
        if (!PyBytes_Check(key) || PyBytes_GET_SIZE(key) != 16) {
            Py_DECREF(key);
            PyErr_SetString(PyExc_TypeError, "a UUID is required");
            return -1;
        }
        memcpy(last->key_bytes, PyBytes_AS_STRING(key), 16);
        Py_DECREF(key);
        Py_XSETREF(last->key, Py_NewRef(value));
    }
    return put_bytes(out, last->key_bytes, 16, 0);
}

/* A time, or unix seconds as a guest wrote them; rint rounds as Python's round does, halves to even. */
static int put_moment(Buffer *out, PyObject *value, Last *last) {
    if (PyFloat_Check(value)) {
        double microseconds = rint(PyFloat_AS_DOUBLE(value) * 1e6);
        if (!(fabs(microseconds) < 9e18)) {
            PyErr_SetString(PyExc_OverflowError, "not a time");
            return -1;
        }
        return put_sized(out, (uint64_t)((int64_t)microseconds - EPOCH_MICROSECONDS), 8);
    }
    if (value != last->moment) {
        PyObject *since = PyNumber_Subtract(value, epoch);
        if (since == NULL)
            return -1;
        if (!PyDelta_Check(since)) {
            Py_DECREF(since);
            PyErr_SetString(PyExc_TypeError, "a time is required");
            return -1;
        }
        last->moment_microseconds =
            (PyDateTime_DELTA_GET_DAYS(since) * INT64_C(86400) + PyDateTime_DELTA_GET_SECONDS(since)) * 1000000 +
            PyDateTime_DELTA_GET_MICROSECONDS(since);
        Py_DECREF(since);
        Py_XSETREF(last->moment, Py_NewRef(value));
    }
    return put_sized(out, (uint64_t)last->moment_microseconds, 8);
}

static int put_value(Buffer *out, PyObject *value, char kind, Last *last) {
    if (value == Py_None) {
        if (reserve(out, 4) < 0)
            return -1;
        put(out, UINT32_MAX, 4);
        return 0;
    }
    switch (kind) {
    case 'u': return put_key(out, value, last);
    case 't': return put_moment(out, value, last);
    case 'i': return put_integer(out, value, 4);
    case 'q': return put_integer(out, value, 8);
    case 'd': return put_float(out, value);
    case 's': return put_text(out, value);
    case 'j': return put_binary(out, value, 1);
    case 'y': return put_binary(out, value, 0);
    case 'b': {
        int truth = PyObject_IsTrue(value);
        return truth < 0 ? -1 : put_sized(out, (uint64_t)truth, 1);
    }
    default: PyErr_Format(PyExc_ValueError, "no such kind: %c", kind); return -1;
    }
}

static int put_row(Buffer *out, PyObject *row, const char *kinds, Py_ssize_t columns, Last *last) {
    if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) != columns) {
        PyErr_Format(PyExc_TypeError, "a tuple of %zd values is required", columns);
        return -1;
    }
    if (reserve(out, 2) < 0)
        return -1;
    put(out, (uint64_t)columns, 2);
    for (Py_ssize_t place = 0; place < columns; place++)
        if (put_value(out, PyTuple_GET_ITEM(row, place), kinds[place], last) < 0)
            return -1;
    return 0;
}

static PyObject *encode(PyObject *module, PyObject *arguments) {
    PyObject *rows;
    const char *kinds;
    Py_ssize_t start, stop, columns;
    Buffer out = {0};
    if (!PyArg_ParseTuple(arguments, "O!nns#", &PyList_Type, &rows, &start, &stop, &kinds, &columns))
        return NULL;
    if (start < 0 || columns > INT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "the first row is at 0, and a table has at most 32,767 columns");
        return NULL;
    }
    Last last = {0};
    int failed = 0;
    for (Py_ssize_t number = start; !failed && number < stop && number < PyList_GET_SIZE(rows); number++) {
        PyObject *row = Py_NewRef(PyList_GET_ITEM(rows, number)); /* asking a UUID for its bytes runs Python */
        failed = put_row(&out, row, kinds, columns, &last) < 0;
        Py_DECREF(row);
    }
    PyObject *encoded = failed ? NULL : PyBytes_FromStringAndSize(out.data, (Py_ssize_t)out.size);
    Py_XDECREF(last.key);
    Py_XDECREF(last.moment);
    PyMem_Free(out.data);
    return encoded;
}

/* ---- the rows of a message's processes, as normalise.process_rows_in_python makes them */

/* What a process is asked for, in the order of its row behind the two values that all rows share. */
enum { ID, PARENT, NAME, PATH, COMMAND, CPU, MEMORY, READ, WRITTEN, STATUS, START, ATTRIBUTES };

/* Words by their first letter, as chains of numbers from 1 on. */
enum { MOST_WORDS = 32 };
typedef struct {
    const char *word[MOST_WORDS];
    unsigned char next[MOST_WORDS], first[128];
} Words;

/* What the texts and the start of a process go through. */
typedef struct {
    Py_ssize_t name_chars, path_chars, state_chars, command_line_chars;
    Words words; /* a command line with none of them stays as it is */
    PyObject *command_line, *status, *start; /* functions */
    double latest_start_seconds;
    PyObject *zero;
} Treatment;

/* A text of at most so many characters; takes the reference and gives one. */
static PyObject *cut(PyObject *text, Py_ssize_t chars) {
    if (text == NULL || !PyUnicode_Check(text) || PyUnicode_GET_LENGTH(text) <= chars)
        return text;
    PyObject *shorter = PyUnicode_Substring(text, 0, chars);
    Py_DECREF(text);
    return shorter;
}

/* What a function makes of a value; takes the reference and gives one. */
static PyObject *through(PyObject *function, PyObject *value) {
    PyObject *result = value == NULL ? NULL : PyObject_CallOneArg(function, value);
    Py_XDECREF(value);
    return result;
}

/* Whether a text is ASCII and has none of the words. */
static int is_without(PyObject *text, const Words *words) {
    if (!PyUnicode_IS_ASCII(text))
        return 0;
    const char *from = (const char *)PyUnicode_1BYTE_DATA(text), *end = from + PyUnicode_GET_LENGTH(text);
    for (; from < end; from++) {
        for (int number = words->first[(int)Py_TOLOWER(*from)]; number != 0; number = words->next[number]) {
            const char *word = words->word[number];
            Py_ssize_t matched = 1;
            while (word[matched] != 0 && from + matched < end && Py_TOLOWER(from[matched]) == word[matched])
                matched++;
            if (word[matched] == 0)
                return 0;
        }
    }
    return 1;
}

/* Lays out ASCII words in small letters, which live as long as the tuple does. */
static int lay_out(PyObject *tuple, Words *words) {
    memset(words, 0, sizeof *words);
    for (Py_ssize_t place = 0; place < PyTuple_GET_SIZE(tuple); place++) {
        PyObject *text = PyTuple_GET_ITEM(tuple, place);
        int number = (int)place + 1;
        if (number >= MOST_WORDS || !PyUnicode_Check(text) || !PyUnicode_IS_ASCII(text) || PyUnicode_GET_LENGTH(text) == 0) {
            PyErr_SetString(PyExc_ValueError, "words are ASCII, and few");
            return -1;
        }
        words->word[number] = (const char *)PyUnicode_1BYTE_DATA(text);
        words->next[number] = words->first[(int)words->word[number][0]];
        words->first[(int)words->word[number][0]] = (unsigned char)number;
    }
    return 0;
}

static PyObject *treated(PyObject *value, int place, const Treatment *by) {
    switch (place) {
    case NAME: return cut(value, by->name_chars);
    case PATH: return cut(value, by->path_chars);
    case COMMAND:
        if (!PyUnicode_Check(value) || PyUnicode_GET_LENGTH(value) == 0)
            return value;
        if (PyUnicode_GET_LENGTH(value) <= by->command_line_chars && is_without(value, &by->words))
            return value;
        return through(by->command_line, value);
    case CPU: {
        int is_above = value == Py_None ? 0 : PyObject_RichCompareBool(value, by->zero, Py_GT);
        if (is_above > 0)
            return value;
        Py_DECREF(value);
        return is_above < 0 ? NULL : Py_NewRef(by->zero);
    }
    case STATUS: return through(by->status, cut(value, by->state_chars));
    case START:
        if (PyFloat_Check(value) && PyFloat_AS_DOUBLE(value) > 0 && PyFloat_AS_DOUBLE(value) < by->latest_start_seconds)
            return value;
        return through(by->start, value);
    default: return value;
    }
}

static PyObject *process_row(PyObject *process, PyObject *names, PyObject *key, PyObject *moment, const Treatment *by) {
    PyObject *row = PyTuple_New(2 + ATTRIBUTES);
    if (row == NULL)
        return NULL;
    PyTuple_SET_ITEM(row, 0, Py_NewRef(key));
    PyTuple_SET_ITEM(row, 1, Py_NewRef(moment));
    for (int place = 0; place < ATTRIBUTES; place++) {
        PyObject *value = PyObject_GetAttr(process, PyTuple_GET_ITEM(names, place));
        if (value != NULL)
            value = treated(value, place, by);
        if (value == NULL) {
            Py_DECREF(row);
            return NULL;
        }
        PyTuple_SET_ITEM(row, 2 + place, value);
    }
    return row;
}

static PyObject *process_rows(PyObject *module, PyObject *arguments) {
    PyObject *rows, *processes, *names, *key, *moment, *words;
    Treatment by;
    if (!PyArg_ParseTuple(arguments, "O!O!O!OO(nnnn)O!OOOd", &PyDict_Type, &rows, &PyList_Type, &processes, &PyTuple_Type,
                          &names, &key, &moment, &by.name_chars, &by.path_chars, &by.state_chars,
                          &by.command_line_chars, &PyTuple_Type, &words, &by.command_line, &by.status, &by.start, &by.latest_start_seconds))
        return NULL;
    if (PyTuple_GET_SIZE(names) != ATTRIBUTES) {
        PyErr_Format(PyExc_TypeError, "%d names are required", ATTRIBUTES);
        return NULL;
    }
    if (lay_out(words, &by.words) < 0 || (by.zero = PyFloat_FromDouble(0.0)) == NULL)
        return NULL;
    int failed = 0;
    for (Py_ssize_t number = 0; !failed && number < PyList_GET_SIZE(processes); number++) {
        PyObject *process = Py_NewRef(PyList_GET_ITEM(processes, number));
        PyObject *row = process_row(process, names, key, moment, &by);
        failed = row == NULL || PyDict_SetItem(rows, PyTuple_GET_ITEM(row, 2), row) < 0;
        Py_XDECREF(row);
        Py_DECREF(process);
    }
    Py_DECREF(by.zero);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"process_rows", process_rows, METH_VARARGS, "process_rows(rows, processes, names, key, moment, chars, command_line, "
                                                 "status, start, latest_start_seconds): adds to a dict by pid."},
    {"encode", encode, METH_VARARGS, "encode(rows, start, stop, kinds): rows start to stop of a list, without header."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "guestd_rows", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_guestd_rows(void) {
    PyDateTime_IMPORT;
    if (PyDateTimeAPI == NULL || (bytes_name = PyUnicode_InternFromString("bytes")) == NULL)
        return NULL;
    epoch = PyDateTimeAPI->DateTime_FromDateAndTime(2000, 1, 1, 0, 0, 0, 0, PyDateTime_TimeZone_UTC,
                                                    PyDateTimeAPI->DateTimeType);
    return epoch == NULL ? NULL : PyModule_Create(&module);
}
