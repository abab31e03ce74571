"""Recipes: what the user wrote, and the plan that it resolves to."""

from subeight.recipes.load import load_recipe, parse_recipe, shipped_recipes
from subeight.recipes.plan import Plan, Site
from subeight.recipes.recipe import Calibration, MethodUse, Recipe, Rule
from subeight.recipes.resolve import resolve

__all__ = [
    "Calibration",
    "MethodUse",
    "Plan",
    "Recipe",
    "Rule",
    "Site",
    "load_recipe",
    "parse_recipe",
    "resolve",
    "shipped_recipes",
]
