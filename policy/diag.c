/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/diag.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/text.h"

struct entry {
    struct moat_diag d; /* its strings are in `text` */
    unsigned serial;
    char *text;
};

struct moat_diags {
    struct entry *v;
    unsigned n, cap;
    unsigned errors;
    unsigned left_out; /* beyond the limit, or for want of memory */
};

struct moat_diags *moat_diags_create(void)
{
    return calloc(1, sizeof(struct moat_diags));
}

void moat_diags_destroy(struct moat_diags *ds)
{
    if (!ds)
        return;
    for (unsigned i = 0; i < ds->n; i++)
        free(ds->v[i].text);
    free(ds->v);
    free(ds);
}

unsigned moat_diags_count(const struct moat_diags *ds)
{
    return ds->n;
}

unsigned moat_diags_errors(const struct moat_diags *ds)
{
    return ds->errors;
}

const struct moat_diag *moat_diags_get(const struct moat_diags *ds, unsigned i)
{
    return &ds->v[i].d;
}

static bool grow(struct moat_diags *ds)
{
    if (ds->n < ds->cap)
        return true;
    unsigned cap = ds->cap ? ds->cap * 2 : 8;
    struct entry *v = realloc(ds->v, cap * sizeof *v);
    if (!v)
        return false;
    ds->v = v;
    ds->cap = cap;
    return true;
}

void moat_diags_add(struct moat_diags *ds, enum moat_severity severity, const char *file,
                    struct moat_pos pos, const char *hint, const char *format, ...)
{
    if (!ds)
        return;
    ds->errors += severity == MOAT_DIAG_ERROR;
    if (ds->n >= MOAT_POLICY_MAX_DIAGS || !grow(ds)) {
        ds->left_out++;
        return;
    }

    /* One allocation: file, message, hint. */
    struct moat_buf b = {0};
    va_list args;
    moat_buf_puts(&b, file);
    moat_buf_add(&b, "", 1);
    size_t message = b.n;
    va_start(args, format);
    moat_buf_vprintf(&b, format, args);
    va_end(args);
    moat_buf_add(&b, "", 1);
    size_t hint_at = b.n;
    if (hint)
        moat_buf_puts(&b, hint);
    char *text = moat_buf_take(&b);
    if (!text) {
        ds->left_out++;
        return;
    }
    ds->v[ds->n] = (struct entry){
        .d = {severity, pos.line, pos.column, text, text + message, hint ? text + hint_at : NULL},
        .serial = ds->n,
        .text = text,
    };
    ds->n++;
}

static int by_position(const void *a_, const void *b_)
{
    const struct entry *a = a_, *b = b_;
    if (a->d.line != b->d.line)
        return a->d.line < b->d.line ? -1 : 1;
    if (a->d.column != b->d.column)
        return a->d.column < b->d.column ? -1 : 1;
    return a->serial < b->serial ? -1 : a->serial > b->serial;
}

void moat_diags_sort(struct moat_diags *ds)
{
    if (ds && ds->n > 1)
        qsort(ds->v, ds->n, sizeof *ds->v, by_position);
}

char *moat_diags_text(const struct moat_diags *ds)
{
    struct moat_buf b = {0};
    for (unsigned i = 0; i < ds->n; i++) {
        const struct moat_diag *d = &ds->v[i].d;
        moat_buf_puts(&b, d->file);
        if (d->line)
            moat_buf_printf(&b, ":%u:%u", d->line, d->column);
        moat_buf_printf(&b, ": %s: %s\n", d->severity == MOAT_DIAG_ERROR ? "error" : "warning",
                        d->message);
        if (d->hint)
            moat_buf_printf(&b, "    hint: %s\n", d->hint);
    }
    if (ds->left_out)
        moat_buf_printf(&b, "... and %u more\n", ds->left_out);
    return moat_buf_take(&b);
}
