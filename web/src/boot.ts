// Before the first paint: style may count on script from here on.
document.documentElement.classList.add("js");
