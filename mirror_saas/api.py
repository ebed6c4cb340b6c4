from ninja import NinjaAPI

api = NinjaAPI(title="Mirror", version="1")
