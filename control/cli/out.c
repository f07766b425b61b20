/* SPDX-License-Identifier: Apache-2.0 */
/* Tables, records and JSON: see out.h. */

#include "out.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "openvswitch/dynamic-string.h"
#include "smap.h"
#include "svec.h"
#include "text.h"
#include "util.h"

struct out_row {
    struct json *json; /* object */
    char **texts;      /* one per column, NULL: nothing to say */
};

struct out {
    const struct out_column *columns;
    size_t n_columns;
    struct out_row *rows;
    size_t n_rows, allocated;
    enum out_format format;
    size_t *widths;
    bool *hidden;
    bool started;   /* heads or bracket are printed */
    bool has_items; /* so is an element of the array */
};

struct out *out_create(const struct out_column *columns, size_t n_columns, enum out_format format)
{
    struct out *o = xzalloc(sizeof *o);

    o->columns = columns;
    o->n_columns = n_columns;
    o->format = format;
    o->widths = xcalloc(n_columns, sizeof *o->widths);
    o->hidden = xcalloc(n_columns, sizeof *o->hidden);
    return o;
}

static void forget_rows(struct out *o)
{
    for (size_t r = 0; r < o->n_rows; r++) {
        json_destroy(o->rows[r].json);
        for (size_t c = 0; c < o->n_columns; c++)
            free(o->rows[r].texts[c]);
        free(o->rows[r].texts);
    }
    o->n_rows = 0;
}

void out_destroy(struct out *o)
{
    if (!o)
        return;
    forget_rows(o);
    free(o->rows);
    free(o->widths);
    free(o->hidden);
    free(o);
}

void out_row(struct out *o)
{
    if (o->n_rows >= o->allocated)
        o->rows = x2nrealloc(o->rows, &o->allocated, sizeof *o->rows);
    struct out_row *row = &o->rows[o->n_rows++];
    row->json = json_object_create();
    row->texts = xcalloc(o->n_columns, sizeof *row->texts);
}

size_t out_n_rows(const struct out *o)
{
    return o->n_rows;
}

static char *text_from_json(const struct json *value)
{
    switch (value->type) {
    case JSON_NULL:
        return xstrdup("");
    case JSON_STRING:
        return xstrdup(json_string(value));
    case JSON_TRUE:
        return xstrdup("yes");
    case JSON_FALSE:
        return xstrdup("no");
    case JSON_OBJECT:
    case JSON_ARRAY:
    case JSON_INTEGER:
    case JSON_REAL:
    case JSON_SERIALIZED_OBJECT:
    case JSON_N_TYPES:
    default:
        return json_to_string(value, JSSF_SORT);
    }
}

static size_t find_column(const struct out *o, const char *key)
{
    size_t c;

    for (c = 0; c < o->n_columns && strcmp(o->columns[c].key, key); c++)
        continue;
    ovs_assert(c < o->n_columns);
    return c;
}

void out_hide(struct out *o, const char *key, bool hide)
{
    o->hidden[find_column(o, key)] = hide;
}

void out_value(struct out *o, const char *key, struct json *value, char *text)
{
    size_t c = find_column(o, key);

    ovs_assert(o->n_rows);
    struct out_row *row = &o->rows[o->n_rows - 1];
    if (!text)
        text = text_from_json(value);
    free(row->texts[c]);
    row->texts[c] = text_plain(text);
    if (value)
        json_object_put(row->json, key, value);
    free(text);
}

void out_string(struct out *o, const char *key, const char *value)
{
    out_value(o, key, json_text(value), xstrdup(value));
}

void out_integer(struct out *o, const char *key, int64_t value)
{
    out_value(o, key, json_integer_create(value), NULL);
}

void out_bool(struct out *o, const char *key, bool value)
{
    out_value(o, key, json_boolean_create(value), NULL);
}

void out_seconds(struct out *o, const char *key, int64_t value)
{
    out_value(o, key, json_integer_create(value), text_duration(value));
}

void out_count(struct out *o, const char *key, uint64_t value)
{
    out_value(o, key, json_integer_create(value > INT64_MAX ? INT64_MAX : (int64_t)value),
              text_count(value));
}

/* A time that is not known is null in JSON and nothing in a table. */
static void put_time(struct out *o, const char *key, char *text)
{
    out_value(o, key, *text ? json_string_create(text) : json_null_create(), text);
}

void out_time(struct out *o, const char *key, int64_t seconds)
{
    put_time(o, key, text_time(seconds));
}

void out_time_us(struct out *o, const char *key, int64_t us)
{
    put_time(o, key, text_time_us(us));
}

void out_strings(struct out *o, const char *key, char *const *values, size_t n)
{
    struct json *array = json_array_create_empty();
    struct svec sorted = SVEC_EMPTY_INITIALIZER;

    for (size_t i = 0; i < n; i++)
        svec_add(&sorted, values[i]);
    svec_sort(&sorted);
    for (size_t i = 0; i < n; i++)
        json_array_add(array, json_text(sorted.names[i]));
    out_value(o, key, array, svec_join(&sorted, ", ", ""));
    svec_destroy(&sorted);
}

void out_smap(struct out *o, const char *key, const struct smap *map)
{
    const struct smap_node **nodes = smap_sort(map);
    struct json *object = json_object_create();
    struct ds text = DS_EMPTY_INITIALIZER;

    for (size_t i = 0; i < smap_count(map); i++) {
        json_object_put_nocopy(object, text_utf8(nodes[i]->key), json_text(nodes[i]->value));
        ds_put_format(&text, "%s%s=%s", i ? ", " : "", nodes[i]->key, nodes[i]->value);
    }
    out_value(o, key, object, ds_steal_cstr(&text));
    free(nodes);
}

static bool is_shown(const struct out *o, size_t c)
{
    return o->columns[c].head && !o->hidden[c];
}

static const char *cell(const struct out *o, size_t r, size_t c)
{
    return o->rows[r].texts[c] ? o->rows[r].texts[c] : "";
}

static void measure(struct out *o)
{
    for (size_t c = 0; c < o->n_columns; c++) {
        if (!is_shown(o, c))
            continue;
        o->widths[c] = MAX(o->widths[c], text_width(o->columns[c].head));
        o->widths[c] = MAX(o->widths[c], o->columns[c].flags >> 8);
        for (size_t r = 0; r < o->n_rows; r++)
            o->widths[c] = MAX(o->widths[c], text_width(cell(o, r, c)));
    }
}

/* Makes the widest flexible column narrower until the table fits. */
static void fit(const struct out *o, size_t *widths, size_t room)
{
    for (;;) {
        size_t sum = 0, widest = SIZE_MAX;

        for (size_t c = 0; c < o->n_columns; c++) {
            if (!is_shown(o, c))
                continue;
            sum += widths[c] + (sum ? 2 : 0);
            if (o->columns[c].flags & OUT_FLEX && widths[c] > 8 &&
                (widest == SIZE_MAX || widths[c] > widths[widest]))
                widest = c;
        }
        if (sum <= room || widest == SIZE_MAX)
            return;
        widths[widest] =
            MAX((size_t)8, widths[widest] - MIN(widths[widest], MAX((sum - room) / 4, (size_t)1)));
    }
}

static size_t terminal_width(FILE *f)
{
    struct winsize ws;

    if (!isatty(fileno(f)) || ioctl(fileno(f), TIOCGWINSZ, &ws) || ws.ws_col < 40)
        return SIZE_MAX;
    return ws.ws_col;
}

static void put_cell(struct ds *line, const char *s, size_t width, unsigned flags)
{
    char *text = text_cut(s, width);
    int pad = (int)(width - text_width(text));

    if (flags & OUT_RIGHT)
        ds_put_char_multiple(line, ' ', pad);
    ds_put_cstr(line, text);
    if (!(flags & OUT_RIGHT))
        ds_put_char_multiple(line, ' ', pad);
    free(text);
}

/* Row SIZE_MAX: the heads. */
static void print_row(const struct out *o, size_t r, const size_t *widths, FILE *f)
{
    struct ds line = DS_EMPTY_INITIALIZER;

    for (size_t c = 0; c < o->n_columns; c++) {
        const struct out_column *col = &o->columns[c];

        if (!is_shown(o, c))
            continue;
        if (line.length)
            ds_put_cstr(&line, "  ");
        put_cell(&line, r == SIZE_MAX ? col->head : cell(o, r, c), widths[c], col->flags);
    }
    ds_chomp(&line, '\n');
    while (line.length && line.string[line.length - 1] == ' ')
        ds_truncate(&line, line.length - 1);
    fprintf(f, "%s\n", ds_cstr(&line));
    ds_destroy(&line);
}

static void flush_table(struct out *o, FILE *f)
{
    measure(o);
    fit(o, o->widths, terminal_width(f));
    if (!o->started)
        print_row(o, SIZE_MAX, o->widths, f);
    for (size_t r = 0; r < o->n_rows; r++)
        print_row(o, r, o->widths, f);
}

static void flush_json(struct out *o, FILE *f)
{
    if (!o->started && o->format == OUT_JSON)
        fputs("[", f);
    for (size_t r = 0; r < o->n_rows; r++) {
        char *s = json_to_string(o->rows[r].json, JSSF_SORT);

        if (o->format == OUT_JSON)
            fprintf(f, "%s%s", o->has_items ? ",\n " : "", s);
        else
            fprintf(f, "%s\n", s);
        free(s);
        o->has_items = true;
    }
}

void out_flush(struct out *o, FILE *f)
{
    if (o->format == OUT_TABLE)
        flush_table(o, f);
    else
        flush_json(o, f);
    o->started = true;
    forget_rows(o);
}

void out_end(struct out *o, FILE *f)
{
    out_flush(o, f);
    if (o->format == OUT_JSON)
        fputs("]\n", f);
}

void out_print_record(const struct out *o, FILE *f)
{
    size_t width = 0;

    for (size_t c = 0; c < o->n_columns; c++)
        if (is_shown(o, c))
            width = MAX(width, text_width(o->columns[c].head));
    for (size_t r = 0; r < o->n_rows; r++)
        for (size_t c = 0; c < o->n_columns; c++)
            if (is_shown(o, c) && *cell(o, r, c))
                fprintf(f, "%s:%*s%s\n", o->columns[c].head,
                        (int)(width - text_width(o->columns[c].head) + 1), "", cell(o, r, c));
}

struct json *out_json(const struct out *o)
{
    struct json *array = json_array_create_empty();

    for (size_t r = 0; r < o->n_rows; r++)
        json_array_add(array, json_deep_clone(o->rows[r].json));
    return array;
}

struct json *out_json_first(const struct out *o)
{
    return o->n_rows ? json_deep_clone(o->rows[0].json) : json_object_create();
}

void json_print(struct json *json, FILE *f)
{
    char *s = json_to_string(json, JSSF_PRETTY | JSSF_SORT);

    fprintf(f, "%s\n", s);
    free(s);
    json_destroy(json);
}

struct json *json_text(const char *s)
{
    return json_string_create_nocopy(text_utf8(s));
}
