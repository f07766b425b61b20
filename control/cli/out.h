/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_OUT_H
#define MOAT_CLI_OUT_H 1

/* What a command found out, as a table, as a record or as JSON.
 *
 * A command declares columns once and fills rows by key.  Each value is stored
 * twice: as JSON (whole, in base units) and as text (for people).  A column
 * without a head is in JSON only; a row need not have every column.  Values go
 * through text_plain() and text_utf8(): callers pass strings as they got them. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "openvswitch/json.h"

#define OUT_RIGHT 0x01          /* numbers */
#define OUT_FLEX 0x02           /* cut when the table is wider than the terminal */
#define OUT_LEAST(N) ((N) << 8) /* at least so wide: for tables whose rows come one by one */

struct out_column {
    const char *key;
    const char *head; /* NULL: JSON only */
    unsigned flags;
};

enum out_format {
    OUT_TABLE,
    OUT_JSON,       /* one array with an object per row */
    OUT_JSON_LINES, /* an object per line and no array: for output without an end */
};

struct out;

/* `columns` must outlive the result. */
struct out *out_create(const struct out_column *columns, size_t n_columns, enum out_format);
void out_destroy(struct out *);

void out_row(struct out *);
size_t out_n_rows(const struct out *); /* since the last flush */

/* These set a column of the last row. */
void out_string(struct out *, const char *key, const char *value);
void out_integer(struct out *, const char *key, int64_t value);
void out_bool(struct out *, const char *key, bool value); /* "yes", "no" */
void out_seconds(struct out *, const char *key, int64_t value);
void out_count(struct out *, const char *key, uint64_t value);
void out_time(struct out *, const char *key, int64_t seconds);
void out_time_us(struct out *, const char *key, int64_t us);
/* An array in JSON, sorted; "a, b" in a table. */
void out_strings(struct out *, const char *key, char *const *values, size_t n);
/* An object in JSON; "a=b, c=d", by key, in a table. */
struct smap;
void out_smap(struct out *, const char *key, const struct smap *);
/* Takes both; text NULL: from the JSON; value NULL: in the table only. */
void out_value(struct out *, const char *key, struct json *value, char *text);

/* Leaves a column out of the table, not out of JSON. */
void out_hide(struct out *, const char *key, bool hide);

/* Lists.  Flushing prints the rows so far, the first time with the heads or the
 * opening bracket, and forgets them: long lists take little memory.  Column widths
 * are those of the first batch or wider.  out_end() flushes and closes the array. */
void out_flush(struct out *, FILE *f);
void out_end(struct out *, FILE *f);

/* Instead of flushing: each row as lines "Head: value". */
void out_print_record(const struct out *, FILE *f);
/* Instead of flushing: the rows as JSON, or the first.  The caller owns it. */
struct json *out_json(const struct out *);
struct json *out_json_first(const struct out *);

/* Prints a JSON document, indented, members sorted; takes it. */
void json_print(struct json *, FILE *f);

/* A JSON string from any bytes. */
struct json *json_text(const char *s);

#endif /* control/cli/out.h */
