/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_SETTINGS_H
#define MOAT_POLICY_SETTINGS_H 1

/* What settings there are: one table for the parser, the printer and for what is
 * derived.  A setting's name, what values it takes, and the field of struct
 * moat_settings that it sets. */

#include "policy/ast.h"

enum setting_kind {
    SETTING_CHOICE,      /* one of `words`; the value is its index */
    SETTING_FAIL,        /* block, allow or pickup [TIME] */
    SETTING_TIME,        /* `min` to `max` ms, in whole `unit`s, which is what the field holds */
    SETTING_NUMBER,      /* up to `max` */
    SETTING_ETHER_TYPES, /* `none` or a list */
};

struct setting_def {
    const char *name; /* as it is written: one word, or `timer` and one */
    enum setting_kind kind;
    const char *wanted, *hint; /* for the message when the value is wrong; hint may be NULL */
    const char *words[3];
    uint32_t min, max, unit;
    uint16_t field; /* offset in struct moat_settings */
    uint8_t size;   /* of the field: 1 or 4 */
};

/* NULL if there is no such setting. */
const struct setting_def *moat_setting_def(enum ast_setting_key);

/* What a number as ethertype would do wrong (a hint); NULL: nothing, it can be let through. */
const char *moat_setting_bad_ethertype(uint32_t type);

#endif /* policy/settings.h */
