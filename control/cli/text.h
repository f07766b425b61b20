/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_TEXT_H
#define MOAT_CLI_TEXT_H 1

/* Text for people and for JSON.
 *
 * Everything that moatctl prints may come from a database row or from an engine
 * that somebody else wrote to.  text_plain() makes it fit for a terminal,
 * text_utf8() for JSON.  Functions that return char * return memory that the
 * caller frees. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Valid UTF-8 without control characters: those, bidirectional overrides and
 * bytes that are no UTF-8 appear as \n, \x1b or \u202e.  One line, safe to print. */
char *text_plain(const char *s);

/* The same, but keeps newlines and tabs: for policy texts. */
char *text_lines(const char *s);

/* Valid UTF-8: bad bytes become U+FFFD.  Control characters stay, JSON escapes them. */
char *text_utf8(const char *s);

/* A string from a fixed-size field that need not have a NUL. */
char *text_field(const char *s, size_t size);

/* Columns that s takes on a terminal: its code points. */
size_t text_width(const char *s);

/* At most `width` code points, "..." in place of what is cut off. */
char *text_cut(const char *s, size_t width);

/* "42s", "2m5s", "3h12m", "5d7h". */
char *text_duration(int64_t seconds);

/* "850us", "12.4ms", "1.20s". */
char *text_microseconds(int64_t us);

/* "1234", "12.3K", "4.56M": 1000 to a step. */
char *text_count(uint64_t n);

/* ISO 8601 in UTC with seconds, or microseconds; "" for zero or less. */
char *text_time(int64_t seconds);
char *text_time_us(int64_t us);

/* n bytes in hexadecimal. */
char *text_hex(const uint8_t *p, size_t n);

/* An address of family 4 or 6 from 4 or 16 bytes, "[2001:db8::1]:443" with a port;
 * port < 0: none. */
char *text_address(unsigned family, const uint8_t addr[16], int port);

/* A protocol's name or number. */
char *text_proto(unsigned proto);

#endif /* control/cli/text.h */
