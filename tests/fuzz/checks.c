/* SPDX-License-Identifier: Apache-2.0 */

/* The test library asks Check whether things hold.  Here no test of Check runs: a failure
 * ends the process, so that the fuzzer sees it. */

#include <check.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void _mark_point(const char *file, int line)
{
    (void)file;
    (void)line;
}

void _ck_assert_failed(const char *file, int line, const char *expr, const char *msg, ...)
{
    va_list ap;

    fprintf(stderr, "%s:%d: %s: ", file, line, expr);
    if (msg) {
        va_start(ap, msg);
        vfprintf(stderr, msg, ap);
        va_end(ap);
    }
    fputc('\n', stderr);
    abort();
}
