/* SPDX-License-Identifier: Apache-2.0 */

#include <config.h>

#include "host_config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "openvswitch/dynamic-string.h"
#include "smap.h"
#include "util.h"

static struct smap conf = SMAP_INITIALIZER(&conf);

struct key {
    const char *name;
    const char *words[4]; /* what it may be; none: a number */
};

static const struct key keys[] = {
    {"on-missing-policy", {"block", "allow"}},
    {"unprotected-taps", {"report", "block", "allow"}},
    {"database-wait-ms", {NULL}},
    {"handover-wait-ms", {NULL}},
};

static bool good(const struct key *key, const char *value)
{
    unsigned n;

    if (!key->words[0])
        return str_to_uint(value, 10, &n) && n <= 600000;
    for (int i = 0; i < 4 && key->words[i]; i++)
        if (!strcmp(key->words[i], value))
            return true;
    return false;
}

static const struct key *find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
        if (!strcmp(keys[i].name, name))
            return &keys[i];
    return NULL;
}

static char *trim(char *s)
{
    s += strspn(s, " \t");
    char *end = s + strlen(s);
    while (end > s && strchr(" \t\r", end[-1]))
        *--end = '\0';
    return s;
}

/* NULL or what is wrong. */
static char *parse_line(char *line, struct smap *fresh)
{
    line[strcspn(line, "#")] = '\0';
    line = trim(line);
    if (!*line)
        return NULL;
    char *eq = strchr(line, '=');
    if (!eq)
        return xasprintf("\"%s\" is not key=value", line);
    *eq = '\0';
    char *name = trim(line), *value = trim(eq + 1);
    const struct key *key = find(name);
    if (!key)
        return xasprintf("no setting is called \"%s\"", name);
    if (!good(key, value))
        return xasprintf("%s cannot be \"%s\"", name, value);
    smap_replace(fresh, name, value);
    return NULL;
}

char *host_config_read(const char *path)
{
    struct smap fresh = SMAP_INITIALIZER(&fresh);
    struct ds line = DS_EMPTY_INITIALIZER;
    char *error = NULL;
    int n = 0;

    FILE *f = fopen(path, "r");
    if (!f && errno != ENOENT)
        error = xasprintf("%s: %s", path, ovs_strerror(errno));
    while (f && !error && !ds_get_line(&line, f)) {
        char *what = parse_line(ds_cstr(&line), &fresh);
        n++;
        if (what)
            error = xasprintf("%s:%d: %s", path, n, what);
        free(what);
    }
    if (f)
        fclose(f);
    if (!error) {
        smap_destroy(&conf);
        smap_clone(&conf, &fresh);
    }
    smap_destroy(&fresh);
    ds_destroy(&line);
    return error;
}

const char *host_config_get(const char *key)
{
    return smap_get(&conf, key);
}

unsigned host_config_uint(const char *key, unsigned fallback)
{
    return smap_get_uint(&conf, key, fallback);
}

void host_config_destroy(void)
{
    smap_destroy(&conf);
    smap_init(&conf);
}
