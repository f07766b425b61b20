/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/text.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool buf_reserve(struct moat_buf *b, size_t more)
{
    if (b->failed)
        return false;
    if (b->n + more + 1 <= b->cap)
        return true;
    size_t cap = b->cap ? b->cap : 128;
    while (cap < b->n + more + 1)
        cap *= 2;
    char *p = realloc(b->p, cap);
    if (!p) {
        moat_buf_destroy(b);
        b->failed = true;
        return false;
    }
    b->p = p;
    b->cap = cap;
    return true;
}

void moat_buf_add(struct moat_buf *b, const char *text, size_t len)
{
    if (!buf_reserve(b, len))
        return;
    memcpy(b->p + b->n, text, len);
    b->n += len;
    b->p[b->n] = '\0';
}

void moat_buf_puts(struct moat_buf *b, const char *text)
{
    moat_buf_add(b, text, strlen(text));
}

void moat_buf_vprintf(struct moat_buf *b, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    if (len >= 0 && buf_reserve(b, (size_t)len)) {
        vsnprintf(b->p + b->n, (size_t)len + 1, format, again);
        b->n += (size_t)len;
    }
    va_end(again);
}

void moat_buf_printf(struct moat_buf *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    moat_buf_vprintf(b, format, args);
    va_end(args);
}

char *moat_buf_take(struct moat_buf *b)
{
    moat_buf_add(b, "", 0); /* an empty text is a text, too */
    char *p = b->p;
    b->p = NULL;
    moat_buf_destroy(b);
    return p;
}

void moat_buf_destroy(struct moat_buf *b)
{
    free(b->p);
    *b = (struct moat_buf){0};
}

/* Reads one code point of at most `len` bytes.  Returns its length, 0 if it is
 * not valid (RFC 3629: no overlong forms, no surrogates). */
static unsigned utf8_read(const unsigned char *s, size_t len, uint32_t *cp)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned n = s[0] < 0x80 ? 1 : s[0] < 0xc0 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (n == 0 || n > len || s[0] > 0xf4)
        return 0;
    *cp = n == 1 ? s[0] : s[0] & (0x7fu >> n);
    for (unsigned i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        *cp = *cp << 6 | (s[i] & 0x3f);
    }
    if (*cp < least[n] || *cp > 0x10ffff || (*cp >= 0xd800 && *cp <= 0xdfff))
        return 0;
    return n;
}

static bool clean(uint32_t cp, bool lines)
{
    if (cp == '\t' || cp == '\n' || cp == '\r')
        return lines;
    if (cp < 0x20 || (cp >= 0x7f && cp < 0xa0))
        return false;
    /* Bidirectional controls let a rule read otherwise than it is. */
    return !((cp >= 0x202a && cp <= 0x202e) || (cp >= 0x2066 && cp <= 0x2069) || cp == 0x200e ||
             cp == 0x200f || cp == 0x2028 || cp == 0x2029 || cp == 0xfeff);
}

size_t moat_text_clean(const char *text, size_t len, bool lines)
{
    size_t i = 0;
    while (i < len) {
        uint32_t cp = 0;
        unsigned n = utf8_read((const unsigned char *)text + i, len - i, &cp);
        if (n == 0 || !clean(cp, lines))
            break;
        i += n;
    }
    return i;
}

unsigned moat_text_distance(const char *a, const char *b)
{
    enum { MAX = 32 };
    size_t la = strlen(a), lb = strlen(b);
    if (la >= MAX || lb >= MAX || la < 2 || lb < 2)
        return 3;
    /* Insert, delete, replace, or swap two neighbours. */
    unsigned char d[MAX + 1][MAX + 1];
    for (size_t i = 0; i <= la; i++) {
        for (size_t j = 0; j <= lb; j++) {
            unsigned best = (unsigned)(i + j);
            if (i && d[i - 1][j] + 1u < best)
                best = d[i - 1][j] + 1u;
            if (j && d[i][j - 1] + 1u < best)
                best = d[i][j - 1] + 1u;
            if (i && j && d[i - 1][j - 1] + (a[i - 1] != b[j - 1]) < (int)best)
                best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1u < best)
                best = d[i - 2][j - 2] + 1u;
            d[i][j] = (unsigned char)best;
        }
    }
    /* A short name is near to too many others. */
    size_t shorter = la < lb ? la : lb;
    return d[la][lb] <= (shorter + 1) / 3 ? d[la][lb] : 3;
}
