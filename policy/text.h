/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_TEXT_H
#define MOAT_POLICY_TEXT_H 1

/* Strings: growing buffers, what counts as clean text, near misses. */

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

/* A string that grows.  After a failure it stays empty and `failed`. */
struct moat_buf {
    char *p;
    size_t n, cap;
    bool failed;
};

void moat_buf_add(struct moat_buf *, const char *text, size_t len);
void moat_buf_puts(struct moat_buf *, const char *text);
void moat_buf_printf(struct moat_buf *, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void moat_buf_vprintf(struct moat_buf *, const char *format, va_list);
/* The NUL-terminated text, now the caller's; NULL if anything failed. */
char *moat_buf_take(struct moat_buf *);
void moat_buf_destroy(struct moat_buf *);

/* Length of the leading part that is valid UTF-8 without control characters
 * (tab, carriage return and newline are fine if `lines`) and without the marks
 * that make text read in another order than it is stored. */
size_t moat_text_clean(const char *text, size_t len, bool lines);

/* For "did you mean": smaller is nearer; above 2 they have nothing in common. */
unsigned moat_text_distance(const char *a, const char *b);

#endif /* policy/text.h */
