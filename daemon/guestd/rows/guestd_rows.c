/* Makes the rows of processes, and encodes rows as PostgreSQL's binary COPY.
 *
 * Format: postgresql.org/docs/current/sql-copy.html, Binary Format. Optional: without this module (no compiler where
 * guestd was installed) Python does the same more slowly; tests/unit/test_compiled_rows.py compares the two.
 *
 * No table, column or message field is named here. The columns of a table and the steps for the fields of a process are
 * arguments: gueststore.contract and guestd.rows.processes define them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <datetime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Days whose microseconds are an int64; no two datetimes are as far apart. */
#define MOST_DAYS 100000000

/* Unix time of PostgreSQL's epoch, 2000-01-01, microseconds. */
#define EPOCH_MICROSECONDS INT64_C(946684800000000)

static PyObject *epoch;      /* datetime(2000, 1, 1, tzinfo=UTC) */
static PyObject *bytes_name; /* "bytes", an attribute of UUIDs */

/* Grows; `data` is allocated by PyMem. */
typedef struct {
    char *data;
    size_t size, room;
} Buffer;

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

/* Big-endian, as the whole format. */
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
        put(out, 1, 1); /* the version of jsonb */
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

static int put_uuid(Buffer *out, PyObject *value) {
    PyObject *key = PyObject_GetAttr(value, bytes_name);
    if (key == NULL)
        return -1;
    int failed;
    if (PyBytes_Check(key) && PyBytes_GET_SIZE(key) == 16) {
        failed = put_bytes(out, PyBytes_AS_STRING(key), 16, 0);
    } else {
        PyErr_SetString(PyExc_TypeError, "a UUID is required");
        failed = -1;
    }
    Py_DECREF(key);
    return failed;
}

/* A datetime, or unix seconds as a guest sent them; rint rounds half to even, as Python's round does. */
static int put_time(Buffer *out, PyObject *value) {
    if (PyFloat_Check(value)) {
        double microseconds = rint(PyFloat_AS_DOUBLE(value) * 1e6);
        if (!(fabs(microseconds) < 9e18)) {
            PyErr_SetString(PyExc_OverflowError, "not a time");
            return -1;
        }
        return put_sized(out, (uint64_t)((int64_t)microseconds - EPOCH_MICROSECONDS), 8);
    }
    PyObject *since = PyNumber_Subtract(value, epoch);
    if (since == NULL)
        return -1;
    if (!PyDelta_Check(since)) {
        Py_DECREF(since);
        PyErr_SetString(PyExc_TypeError, "a time is required");
        return -1;
    }
    int days = PyDateTime_DELTA_GET_DAYS(since);
    if (days < -MOST_DAYS || days > MOST_DAYS) {
        Py_DECREF(since);
        PyErr_SetString(PyExc_OverflowError, "not a time");
        return -1;
    }
    int64_t microseconds =
        (days * INT64_C(86400) + PyDateTime_DELTA_GET_SECONDS(since)) * 1000000 +
        PyDateTime_DELTA_GET_MICROSECONDS(since);
    Py_DECREF(since);
    return put_sized(out, (uint64_t)microseconds, 8);
}

/* `kind`: a letter that guestd.store.copy gives each type of column. */
static int put_value(Buffer *out, PyObject *value, char kind) {
    if (value == Py_None) {
        if (reserve(out, 4) < 0)
            return -1;
        put(out, UINT32_MAX, 4);
        return 0;
    }
    switch (kind) {
    case 'u': return put_uuid(out, value);
    case 't': return put_time(out, value);
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

/* The values of a tuple of exactly `count`, of the kinds. */
static int put_values(Buffer *out, PyObject *values, const char *kinds, Py_ssize_t count) {
    if (!PyTuple_Check(values) || PyTuple_GET_SIZE(values) != count) {
        PyErr_Format(PyExc_TypeError, "a tuple of %zd values is required", count);
        return -1;
    }
    for (Py_ssize_t place = 0; place < count; place++)
        if (put_value(out, PyTuple_GET_ITEM(values, place), kinds[place]) < 0)
            return -1;
    return 0;
}

/* A group is (shared, rows): the number of columns and the shared values are encoded once and copied to each row. */
static int put_group(Buffer *out, Buffer *start, PyObject *group, const char *kinds, Py_ssize_t columns) {
    PyObject *shared, *rows;
    if (!PyTuple_Check(group)) {
        PyErr_SetString(PyExc_TypeError, "a group is (shared, rows)");
        return -1;
    }
    if (!PyArg_ParseTuple(group, "O!O!", &PyTuple_Type, &shared, &PyList_Type, &rows))
        return -1;
    Py_ssize_t common = PyTuple_GET_SIZE(shared);
    if (common > columns) {
        PyErr_SetString(PyExc_TypeError, "more values are shared than there are columns");
        return -1;
    }
    start->size = 0;
    if (reserve(start, 2) < 0)
        return -1;
    put(start, (uint64_t)columns, 2);
    if (put_values(start, shared, kinds, common) < 0)
        return -1;
    for (Py_ssize_t number = 0; number < PyList_GET_SIZE(rows); number++) {
        if (reserve(out, start->size) < 0)
            return -1;
        memcpy(out->data + out->size, start->data, start->size);
        out->size += start->size;
        PyObject *row = Py_NewRef(PyList_GET_ITEM(rows, number)); /* encoding a value may run Python */
        int failed = put_values(out, row, kinds + common, columns - common) < 0;
        Py_DECREF(row);
        if (failed)
            return -1;
    }
    return 0;
}

static PyObject *encode(PyObject *module, PyObject *arguments) {
    PyObject *groups;
    const char *kinds;
    Py_ssize_t columns;
    if (!PyArg_ParseTuple(arguments, "O!s#", &PyList_Type, &groups, &kinds, &columns))
        return NULL;
    if (columns > INT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "a table has at most 32,767 columns");
        return NULL;
    }
    Buffer out = {0}, start = {0};
    int failed = 0;
    for (Py_ssize_t number = 0; !failed && number < PyList_GET_SIZE(groups); number++) {
        PyObject *group = Py_NewRef(PyList_GET_ITEM(groups, number));
        failed = put_group(&out, &start, group, kinds, columns) < 0;
        Py_DECREF(group);
    }
    PyObject *encoded = failed ? NULL : PyBytes_FromStringAndSize(out.data, (Py_ssize_t)out.size);
    PyMem_Free(out.data);
    PyMem_Free(start.data);
    return encoded;
}

/* ---- the rows of a message's processes, equal to those of guestd.rows.processes.make_rows_in_python */

/* Words by their first letter: `first` and `next` are chains of their numbers, which begin at 1; 0 ends a chain. */
enum { MOST_WORDS = 32 };
typedef struct {
    const char *word[MOST_WORDS];
    unsigned char next[MOST_WORDS], first[128];
} Words;

/* The step of a column's value: guestd.rows.processes describes the steps. */
typedef struct {
    enum { KEEP, CUT, MAP, AT_LEAST, TIME, REDACT } kind;
    Py_ssize_t chars;
    double bound;
    PyObject *least; /* `bound` as an object */
    PyObject *function;
    Words words;
} Step;

/* Reads lower-case ASCII words; they are valid as long as the tuple is. */
static int read_words(PyObject *tuple, Words *words) {
    memset(words, 0, sizeof *words);
    for (Py_ssize_t place = 0; place < PyTuple_GET_SIZE(tuple); place++) {
        PyObject *text = PyTuple_GET_ITEM(tuple, place);
        int number = (int)place + 1;
        if (number >= MOST_WORDS || !PyUnicode_Check(text) || !PyUnicode_IS_ASCII(text) || PyUnicode_GET_LENGTH(text) == 0) {
            PyErr_Format(PyExc_ValueError, "at most %d words are required, in ASCII", MOST_WORDS - 1);
            return -1;
        }
        words->word[number] = (const char *)PyUnicode_1BYTE_DATA(text);
        words->next[number] = words->first[(int)words->word[number][0]];
        words->first[(int)words->word[number][0]] = (unsigned char)number;
    }
    return 0;
}

static int read_step(PyObject *tuple, Step *step) {
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) == 0 || !PyUnicode_Check(PyTuple_GET_ITEM(tuple, 0))) {
        PyErr_SetString(PyExc_TypeError, "a step is a name and its arguments");
        return -1;
    }
    PyObject *name = PyTuple_GET_ITEM(tuple, 0), *words;
    const char *ignored;
    if (PyUnicode_CompareWithASCIIString(name, "keep") == 0) {
        step->kind = KEEP;
        return 0;
    }
    if (PyUnicode_CompareWithASCIIString(name, "cut") == 0) {
        step->kind = CUT;
        return PyArg_ParseTuple(tuple, "sn", &ignored, &step->chars) ? 0 : -1;
    }
    if (PyUnicode_CompareWithASCIIString(name, "map") == 0) {
        step->kind = MAP;
        return PyArg_ParseTuple(tuple, "snO", &ignored, &step->chars, &step->function) ? 0 : -1;
    }
    if (PyUnicode_CompareWithASCIIString(name, "at least") == 0) {
        step->kind = AT_LEAST;
        return PyArg_ParseTuple(tuple, "sO", &ignored, &step->least) ? 0 : -1;
    }
    if (PyUnicode_CompareWithASCIIString(name, "time") == 0) {
        step->kind = TIME;
        return PyArg_ParseTuple(tuple, "sdO", &ignored, &step->bound, &step->function) ? 0 : -1;
    }
    if (PyUnicode_CompareWithASCIIString(name, "redact") == 0) {
        step->kind = REDACT;
        if (!PyArg_ParseTuple(tuple, "snO!O", &ignored, &step->chars, &PyTuple_Type, &words, &step->function))
            return -1;
        return read_words(words, &step->words);
    }
    PyErr_Format(PyExc_ValueError, "no such step: %U", name);
    return -1;
}

/* The first characters of a text; any other value unchanged. Consumes the reference, returns a new one. */
static PyObject *cut(PyObject *text, Py_ssize_t chars) {
    if (text == NULL || !PyUnicode_Check(text) || PyUnicode_GET_LENGTH(text) <= chars)
        return text;
    PyObject *shorter = PyUnicode_Substring(text, 0, chars);
    Py_DECREF(text);
    return shorter;
}

/* The result of a function of the value. Consumes the reference, returns a new one. */
static PyObject *call(PyObject *function, PyObject *value) {
    PyObject *result = value == NULL ? NULL : PyObject_CallOneArg(function, value);
    Py_XDECREF(value);
    return result;
}

/* Whether a text is ASCII and contains none of the words. */
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

/* The value after its step. Consumes the reference, returns a new one. */
static PyObject *after(PyObject *value, const Step *step) {
    switch (step->kind) {
    case CUT: return cut(value, step->chars);
    case MAP: return call(step->function, cut(value, step->chars));
    case AT_LEAST: {
        int is_above = value == Py_None ? 0 : PyObject_RichCompareBool(value, step->least, Py_GT);
        if (is_above > 0)
            return value;
        Py_DECREF(value);
        return is_above < 0 ? NULL : Py_NewRef(step->least);
    }
    case TIME:
        if (PyFloat_Check(value) && PyFloat_AS_DOUBLE(value) > 0 && PyFloat_AS_DOUBLE(value) < step->bound)
            return value;
        return call(step->function, value);
    case REDACT:
        if (!PyUnicode_Check(value) || PyUnicode_GET_LENGTH(value) == 0)
            return value;
        if (PyUnicode_GET_LENGTH(value) <= step->chars && is_without(value, &step->words))
            return value;
        return call(step->function, value);
    default: return value;
    }
}

static PyObject *process_row(PyObject *process, PyObject *names, const Step *steps) {
    Py_ssize_t columns = PyTuple_GET_SIZE(names);
    PyObject *row = PyTuple_New(columns);
    if (row == NULL)
        return NULL;
    for (Py_ssize_t place = 0; place < columns; place++) {
        PyObject *value = PyObject_GetAttr(process, PyTuple_GET_ITEM(names, place));
        if (value != NULL)
            value = after(value, &steps[place]);
        if (value == NULL) {
            Py_DECREF(row);
            return NULL;
        }
        PyTuple_SET_ITEM(row, place, value);
    }
    return row;
}

static int add_rows(PyObject *rows, PyObject *processes, Py_ssize_t key, PyObject *names, const Step *steps) {
    int failed = 0;
    for (Py_ssize_t number = 0; !failed && number < PyList_GET_SIZE(processes); number++) {
        PyObject *process = Py_NewRef(PyList_GET_ITEM(processes, number));
        PyObject *row = process_row(process, names, steps);
        failed = row == NULL || PyDict_SetItem(rows, PyTuple_GET_ITEM(row, key), row) < 0;
        Py_XDECREF(row);
        Py_DECREF(process);
    }
    return failed ? -1 : 0;
}

static PyObject *process_rows(PyObject *module, PyObject *arguments) {
    PyObject *rows, *processes, *names, *steps;
    Py_ssize_t key;
    if (!PyArg_ParseTuple(arguments, "O!O!nO!O!", &PyDict_Type, &rows, &PyList_Type, &processes, &key, &PyTuple_Type, &names,
                          &PyTuple_Type, &steps))
        return NULL;
    Py_ssize_t columns = PyTuple_GET_SIZE(names);
    if (PyTuple_GET_SIZE(steps) != columns || key < 0 || key >= columns) {
        PyErr_SetString(PyExc_TypeError, "a column as key, and a step for each name are required");
        return NULL;
    }
    Step *read = PyMem_Calloc((size_t)columns, sizeof *read);
    if (read == NULL)
        return PyErr_NoMemory();
    int failed = 0;
    for (Py_ssize_t place = 0; !failed && place < columns; place++)
        failed = read_step(PyTuple_GET_ITEM(steps, place), &read[place]) < 0;
    failed = failed || add_rows(rows, processes, key, names, read) < 0;
    PyMem_Free(read);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"process_rows", process_rows, METH_VARARGS,
     "process_rows(rows, processes, key, names, steps): adds a row of each process to a dict, by its key."},
    {"encode", encode, METH_VARARGS, "encode(groups, kinds): the rows of groups (shared, rows), without header."},
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
