/* SPDX-License-Identifier: Apache-2.0 */
/* Text for people and for JSON: see text.h. */

#include "text.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "openvswitch/dynamic-string.h"
#include "util.h"

/* Reads one code point.  Returns its length and the code point, or 0 if the
 * bytes at s are no shortest-form UTF-8 of a scalar value. */
static unsigned decode_utf8(const char *s, uint32_t *cp)
{
    const uint8_t *p = (const uint8_t *)s;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned n;

    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    } else if ((p[0] & 0xe0) == 0xc0) {
        n = 2;
        *cp = p[0] & 0x1f;
    } else if ((p[0] & 0xf0) == 0xe0) {
        n = 3;
        *cp = p[0] & 0x0f;
    } else if ((p[0] & 0xf8) == 0xf0) {
        n = 4;
        *cp = p[0] & 0x07;
    } else {
        return 0;
    }
    for (unsigned i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) /* stops at the NUL too */
            return 0;
        *cp = *cp << 6 | (p[i] & 0x3f);
    }
    if (*cp < least[n] || *cp > 0x10ffff || (*cp >= 0xd800 && *cp <= 0xdfff))
        return 0;
    return n;
}

/* Characters that move the cursor, change the order of what is shown or show
 * nothing: they could make a row look like another one. */
static bool is_unprintable(uint32_t cp)
{
    return cp < 0x20 || (cp >= 0x7f && cp < 0xa0) || cp == 0xad || cp == 0x61c ||
           (cp >= 0x200b && cp <= 0x200f) || (cp >= 0x2028 && cp <= 0x202e) ||
           (cp >= 0x2060 && cp <= 0x206f) || cp == 0xfeff || (cp >= 0xfff9 && cp <= 0xfffb) ||
           (cp >= 0xe0000 && cp <= 0xe0fff);
}

static char *clean(const char *s, bool keep_lines)
{
    struct ds out = DS_EMPTY_INITIALIZER;

    while (*s) {
        uint32_t cp;
        unsigned n = decode_utf8(s, &cp);

        if (!n) {
            ds_put_format(&out, "\\x%02x", (uint8_t)*s++);
            continue;
        }
        if (!is_unprintable(cp) || (keep_lines && (cp == '\n' || cp == '\t')))
            ds_put_buffer(&out, s, n);
        else if (cp == '\n')
            ds_put_cstr(&out, "\\n");
        else if (cp == '\t')
            ds_put_cstr(&out, "\\t");
        else if (cp < 0x100)
            ds_put_format(&out, "\\x%02x", cp);
        else
            ds_put_format(&out, cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
        s += n;
    }
    return ds_steal_cstr(&out);
}

char *text_plain(const char *s)
{
    return clean(s, false);
}

char *text_lines(const char *s)
{
    return clean(s, true);
}

char *text_utf8(const char *s)
{
    struct ds out = DS_EMPTY_INITIALIZER;

    while (*s) {
        uint32_t cp;
        unsigned n = decode_utf8(s, &cp);

        if (n)
            ds_put_buffer(&out, s, n);
        else
            ds_put_cstr(&out, "\xef\xbf\xbd");
        s += n ? n : 1;
    }
    return ds_steal_cstr(&out);
}

char *text_field(const char *s, size_t size)
{
    return xmemdup0(s, strnlen(s, size));
}

size_t text_width(const char *s)
{
    size_t n = 0;

    for (; *s; s++)
        n += ((uint8_t)*s & 0xc0) != 0x80;
    return n;
}

char *text_cut(const char *s, size_t width)
{
    const char *end = s;

    if (text_width(s) <= width)
        return xstrdup(s);
    for (size_t n = width > 3 ? width - 3 : width; n > 0; n--)
        do {
            end++;
        } while (((uint8_t)*end & 0xc0) == 0x80);
    return xasprintf("%.*s%s", (int)(end - s), s, width > 3 ? "..." : "");
}

char *text_duration(int64_t s)
{
    if (s < 0)
        s = 0;
    if (s < 60)
        return xasprintf("%" PRId64 "s", s);
    if (s < 3600)
        return xasprintf("%" PRId64 "m%" PRId64 "s", s / 60, s % 60);
    if (s < 86400)
        return xasprintf("%" PRId64 "h%" PRId64 "m", s / 3600, s / 60 % 60);
    return xasprintf("%" PRId64 "d%" PRId64 "h", s / 86400, s / 3600 % 24);
}

char *text_microseconds(int64_t us)
{
    if (us < 1000 && us > -1000)
        return xasprintf("%" PRId64 "us", us);
    if (us < 1000000 && us > -1000000)
        return xasprintf("%.1fms", (double)us / 1e3);
    return xasprintf("%.2fs", (double)us / 1e6);
}

char *text_count(uint64_t n)
{
    static const char units[] = "KMGTPE";
    double v = (double)n;
    int unit = -1;

    if (n < 10000)
        return xasprintf("%" PRIu64, n);
    while (v >= 999.5 && unit < 5) {
        v /= 1000;
        unit++;
    }
    return xasprintf(v < 9.995 ? "%.2f%c" : v < 99.95 ? "%.1f%c" : "%.0f%c", v, units[unit]);
}

char *text_time_us(int64_t us)
{
    time_t t = us / 1000000;
    struct tm tm;
    char buf[40];

    if (us <= 0 || !gmtime_r(&t, &tm) || tm.tm_year > 8099)
        return xstrdup("");
    strftime(buf, sizeof buf, "%Y-%m-%dT%H:%M:%S", &tm);
    return xasprintf("%s.%06dZ", buf, (int)(us % 1000000));
}

char *text_time(int64_t seconds)
{
    time_t t = seconds;
    struct tm tm;
    char buf[40];

    if (seconds <= 0 || !gmtime_r(&t, &tm) || tm.tm_year > 8099)
        return xstrdup("");
    strftime(buf, sizeof buf, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return xstrdup(buf);
}

char *text_hex(const uint8_t *p, size_t n)
{
    char *s = xmalloc(2 * n + 1);

    for (size_t i = 0; i < n; i++)
        snprintf(s + 2 * i, 3, "%02x", p[i]);
    s[2 * n] = '\0';
    return s;
}

char *text_address(unsigned family, const uint8_t addr[16], int port)
{
    char buf[INET6_ADDRSTRLEN] = "?";

    inet_ntop(family == 6 ? AF_INET6 : AF_INET, addr, buf, sizeof buf);
    if (port < 0)
        return xstrdup(buf);
    return xasprintf(family == 6 ? "[%s]:%d" : "%s:%d", buf, port);
}

char *text_proto(unsigned proto)
{
    switch (proto) {
    case 1:
        return xstrdup("icmp");
    case 6:
        return xstrdup("tcp");
    case 17:
        return xstrdup("udp");
    case 58:
        return xstrdup("icmp6");
    case 132:
        return xstrdup("sctp");
    default:
        return xasprintf("%u", proto);
    }
}
